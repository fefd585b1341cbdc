"""A slow process is named in three intervals, once, and nobody else."""

import random

from mtnlg.run.slowness import Slowness


def test_a_process_with_300_ms_more_is_named_at_the_third_interval_and_once():
    slowness, steady = Slowness(), {0: 0.01, 1: 0.31}
    assert [slowness.judge(steady) for _ in range(6)] == [[], [], [1], [], [], []]


def test_who_recovers_is_named_again():
    slowness, steady, slow = Slowness(), {0: 0.01, 1: 0.01, 2: 0.01}, {0: 0.01, 1: 0.01, 2: 0.4}
    told = [slowness.judge(secs) for secs in [slow, slow, steady, slow, slow, slow, steady, slow, slow, slow]]
    assert told == [[]] * 5 + [[2]] + [[]] * 3 + [[2]]


def test_200_intervals_with_jitter_raise_no_alarm():
    """As of batches that lie ready, with now and then a long one of a process (a tenth of the intervals, up to half a second)."""
    dice, slowness = random.Random(0), Slowness()
    for _ in range(200):
        secs = {process: dice.uniform(0.0005, 0.04) for process in range(4)}
        if dice.random() < 0.1:
            secs[dice.randrange(4)] += dice.uniform(0, 0.5)
        assert slowness.judge(secs) == []


def test_slow_alike_is_nobody_s_fault():
    slowness = Slowness()
    assert not any(slowness.judge(dict.fromkeys(range(4), 3.0)) for _ in range(10))


def test_alone_nobody_is_slow():
    slowness = Slowness()
    assert not any(slowness.judge({0: 3.0}) for _ in range(10))
