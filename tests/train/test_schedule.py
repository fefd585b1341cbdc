"""Batch ramp and learning rate against the published recipe of MT-NLG and against hand-worked values."""

import dataclasses
import math

import pytest

from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.train import schedule
from mtnlg.train.schedule import Position, batch_size, final_position, learning_rate

PAPER = configs.resolve(["--config=configs/mtnlg_530b.py"])


def test_the_paper_s_ramp():
    """32 to 1920 sequences in steps of 32 during the first 12 B tokens: 59 increases, about 14,470 steps."""
    position, sizes = Position(), []
    while batch_size(PAPER.train, position.samples) != 1920:
        sizes.append(batch_size(PAPER.train, position.samples))
        position = position.after(sizes[-1], 2048)
    assert sorted(set(sizes)) == list(range(32, 1920, 32))
    assert sizes == sorted(sizes)
    assert position.tokens == pytest.approx(12e9, rel=1e-3)
    assert position.step == pytest.approx(14470, rel=1e-3)


def test_the_paper_s_run_ends_just_beyond_270_billion_tokens():
    end = final_position(PAPER)
    assert 270e9 <= end.tokens < 270e9 + 1920 * 2048


@pytest.mark.parametrize(
    ("tokens", "rate"),
    [(0, 0.0), (500_000_000, 2.5e-5), (1_000_000_000, 5.0e-5), (270_000_000_000, 9.57e-6), (340_000_000_000, 5.0e-6), (10**12, 5.0e-6)],
)
def test_the_paper_s_learning_rate(tokens, rate):
    assert learning_rate(PAPER.optimizer, tokens, 0) == pytest.approx(rate, rel=1e-3)


def test_wsd_is_stable_then_falls_in_a_line():
    optimizer = schema.Optimizer(schedule="wsd", learning_rate=1.0, min_lr_ratio=0.1, warmup_tokens=100, wsd_decay_fraction=0.2)
    rates = [learning_rate(optimizer, tokens, 1000) for tokens in (50, 100, 800, 900, 1000)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])


def test_constant_after_warm_up():
    optimizer = schema.Optimizer(schedule="constant", learning_rate=1.0, warmup_tokens=10)
    assert [learning_rate(optimizer, tokens, 100) for tokens in (5, 10, 99, 1000)] == [0.5, 1.0, 1.0, 1.0]


def test_cosine_is_half_way_in_the_middle():
    optimizer = schema.Optimizer(learning_rate=1.0, min_lr_ratio=0.0, warmup_tokens=0)
    assert learning_rate(optimizer, 500, 1000) == pytest.approx(0.5)
    assert learning_rate(optimizer, 250, 1000) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_final_position_counts_the_ramp_step_by_step():
    train = schema.Train(num_steps=37, batch_size=12, microbatch_size=2, ramp_start_size=2, ramp_increment=2, ramp_samples=100)
    config = schema.Config(train=train)
    position = Position()
    for _ in range(37):
        position = position.after(batch_size(train, position.samples), config.model.seq_len)
    assert final_position(config) == position


def test_a_ramp_that_has_nowhere_to_go_is_the_full_batch():
    train = schema.Train(batch_size=8, ramp_start_size=8, ramp_samples=100)
    assert batch_size(train, 0) == 8
    assert schedule.batch_size(dataclasses.replace(train, ramp_start_size=None), 0) == 8
