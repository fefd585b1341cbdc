"""Beam search finds what trying everything finds, where it is wide enough, and what an independent search finds where it is not."""

import itertools

import numpy as np
import pytest

from mtnlg.infer.beam import Hypothesis, search

V, LENGTH = 4, 4


class Toy:
    """A model in which every prefix has random next tokens of its own, the same whenever it is asked."""

    vocab_size = V

    def __init__(self, width, seed=0, scale=1.5):
        self.seed, self.scale, self.prefixes = seed, scale, [()] * width

    def logprobs(self, prefix):
        logits = self.scale * np.random.default_rng([self.seed, *prefix]).standard_normal(V)
        return (logits - np.log(np.exp(logits).sum())).astype(np.float32)

    def likeliest(self, totals_W, count):
        assert len(totals_W) == len(self.prefixes)
        totals = (totals_W[:, None] + np.array([self.logprobs(prefix) for prefix in self.prefixes])).reshape(-1)
        best = np.argsort(-totals, kind="stable")[:count]
        return totals[best], best

    def follow(self, rows_W, ids_W):
        self.prefixes = [(*self.prefixes[row], int(id)) for row, id in zip(rows_W, ids_W, strict=True)]


def everything(toy, end_ids, length_penalty):
    """(worth, ids, log-probability) of every sequence that has ended or is as long as allowed, best first."""
    found = []
    for length in range(1, LENGTH + 1):
        for ids in itertools.product(range(V), repeat=length):
            ended = ids[-1] in end_ids
            if (ended or length == LENGTH) and not set(ids[:-1]) & set(end_ids):
                total = sum(np.float64(toy.logprobs(ids[:n])[id]) for n, id in enumerate(ids))
                found.append((total / length**length_penalty, list(ids[: length - ended]), total))
    return sorted(found, key=lambda one: -one[0])


def by_steps(toy, width, end_ids, length_penalty):
    """The search without an early end and without choosing candidates first: all continuations of the live ones are sorted."""
    live, finished = [((), 0.0)], []
    for length in range(1, LENGTH + 1):
        grown = [((*ids, id), total + np.float64(toy.logprobs(ids)[id])) for ids, total in live for id in range(V)]
        grown = sorted(grown, key=lambda one: -one[1])[: width * (1 + len(end_ids))]
        ended = [(total / length**length_penalty, list(ids[:-1]), total) for ids, total in grown if ids[-1] in end_ids]
        live = [(ids, total) for ids, total in grown if ids[-1] not in end_ids][:width]
        finished = sorted(finished + ended, key=lambda one: -one[0])[:width]
    last = [(total / LENGTH**length_penalty, list(ids), total) for ids, total in live]
    return sorted(finished + last, key=lambda one: -one[0])[:width]


def same(found: list[Hypothesis], expected) -> None:
    assert [one.ids for one in found] == [ids for _, ids, _ in expected]
    np.testing.assert_allclose([one.logprob for one in found], [total for _, _, total in expected], atol=1e-5)


each_penalty = pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
each_end = pytest.mark.parametrize("end_ids", [(), (3,), (0, 2)])


@each_penalty
@each_end
def test_a_search_that_is_wide_enough_finds_everything(end_ids, length_penalty):
    width = V**LENGTH
    same(search(Toy(width), width, LENGTH, end_ids, length_penalty), everything(Toy(1), end_ids, length_penalty))


@each_penalty
@each_end
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_a_narrow_search_is_one_without_an_early_end(width, end_ids, length_penalty):
    for seed in range(5):
        same(search(Toy(width, seed), width, LENGTH, end_ids, length_penalty), by_steps(Toy(1, seed), width, end_ids, length_penalty))


def test_width_and_penalty_matter():
    """Negative control: a narrow search misses the best of some models, and another penalty finds another best."""
    found = [search(Toy(1, seed), 1, LENGTH)[0].ids == everything(Toy(1, seed), (), 1.0)[0][1] for seed in range(20)]
    assert any(found) and not all(found)
    assert search(Toy(64), 64, LENGTH, (3,), 0.0)[0] != search(Toy(64), 64, LENGTH, (3,), 2.5)[0]


def test_equal_ones_come_in_the_order_they_ended_by_row_and_by_id():
    assert [one.ids for one in search(Toy(3, scale=0.0), 3, 2, (3,), 1.0)] == [[], [0], [0, 0]]


class Ending(Toy):
    """The same next tokens everywhere, but for the first place. 3 is the end. Counts what is asked of it."""

    def __init__(self, first, later):
        super().__init__(1)
        self.probs, self.asked = (first, later), 0

    def logprobs(self, prefix):
        return np.log(np.array(self.probs[bool(prefix)], np.float32))

    def likeliest(self, totals_W, count):
        self.asked += 1
        return super().likeliest(totals_W, count)


@pytest.mark.parametrize(
    ("first", "length_penalty", "ids", "steps"),
    [
        ([0.06, 0.03, 0.01, 0.9], 0.0, [], 1),
        ([0.06, 0.03, 0.01, 0.9], 2.0, [0] * 49, 50),  # long ones become worth more
        ([0.9, 0.03, 0.02, 0.05], -1.0, [0], 2),  # less, but not yet
    ],
)
def test_a_search_ends_when_nothing_better_can_come(first, length_penalty, ids, steps):
    model = Ending(first, [0.06, 0.03, 0.01, 0.9])
    assert search(model, 1, 50, (3,), length_penalty)[0].ids == ids and model.asked == steps
