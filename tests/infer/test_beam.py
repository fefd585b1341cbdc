"""Beam search finds what trying everything finds, where it is wide enough, and what an independent search finds where it is not."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from test_engine import SEQ_LEN, SPECS, make, oracle_logits

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.infer import chunks
from mtnlg.infer.beam import Beams, Hypothesis, search
from mtnlg.infer.engine import Engine
from mtnlg.infer.request import Request
from mtnlg.model import cache as caches
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import specs

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


# With a model


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caches, "BLOCK", 4)
    monkeypatch.setattr(chunks, "SHORTEST", 1)


class Forwards(Toy):
    """Rows of the oracle, which reads whole texts anew."""

    def __init__(self, width, name, prompt):
        super().__init__(width)
        (self.spec, self.params, _), self.prompt = make(name), prompt
        self.vocab_size = self.spec.vocab_size

    def logprobs(self, prefix):
        logits = oracle_logits(self.spec, self.params, [*self.prompt, *prefix])
        return logits - np.log(np.exp(logits).sum())


def on_mesh(**degrees):
    """The engine of "learned", spread."""
    _, params, engine = make("learned")
    config = replace(engine.config, mesh=schema.Mesh(**degrees))
    made = meshes.make(config.mesh)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    return Engine(config, made, jax.tree.map(jax.device_put, params, specs.shardings(made, specs.storage_table(config), params)))


def same_hypotheses(found, expected) -> None:
    assert [one.ids for one in found] == [one.ids for one in expected]
    np.testing.assert_allclose([one.logprob for one in found], [one.logprob for one in expected], atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_a_models_search_is_that_of_whole_forwards(name):
    """After prompts of one chunk and of several, one search after the other, with ends and without."""
    beams = Beams(make(name)[2], 4)
    for prompt, end_ids in (([3], ()), ([1, 2, 3, 4, 5, 6], (1, 5)), ([1, 2, 3], (4,))):
        found = beams.search(prompt, 6, end_ids, 0.8)
        same_hypotheses(found, search(Forwards(4, name, prompt), 4, 6, end_ids, 0.8))
        assert len({tuple(one.ids) for one in found}) == 4


def test_one_beam_is_greedy():
    engine = make("learned")[2]
    for prompt in ([3], [5, 2, 7, 1, 1]):
        assert [Beams(engine, 1).search(prompt, 9)[0].ids] == engine.generate([Request(prompt, 9, temperature=0.0)])


def test_tensor_shards_search_alike():
    same_hypotheses(Beams(on_mesh(tensor=2), 3).search([3, 1], 6, (1,)), Beams(make("learned")[2], 3).search([3, 1], 6, (1,)))


def test_an_engine_at_work_is_left_alone():
    engine = make("learned")[2]
    beside = Request([3], 8, temperature=0.0)
    events = engine.run([beside])
    first = next(events)
    Beams(engine, 2).search([1, 2], 3)
    written = [event.token.id for event in (first, *events)]
    assert [written] == engine.generate([beside])


@pytest.mark.parametrize(
    ("width", "prompt", "settings", "what"),
    [
        (0, [1], {}, "over 0 rows"),
        (2, [], {}, "no tokens"),
        (2, [1], {"max_new_tokens": SEQ_LEN}, "exceed"),
        (2, [1], {"length_penalty": float("nan")}, "length_penalty=nan"),
        (2, [1], {"length_penalty": 1e4}, "length_penalty=10000.0"),
        (2, [1], {"length_penalty": -1e4}, "length_penalty=-10000.0"),
    ],
)
def test_what_cannot_be_searched_is_refused(width, prompt, settings, what):
    with pytest.raises(ConfigError, match=what):
        Beams(make("learned")[2], width).search(prompt, **{"max_new_tokens": 2} | settings)


def test_groups_of_devices_are_refused():
    with pytest.raises(ConfigError, match="2 groups of devices"):
        Beams(on_mesh(data=2), 2)
