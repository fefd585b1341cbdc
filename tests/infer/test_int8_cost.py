"""The cost of eight bits: nothing where nothing is narrowed, the true divergence where that is known, and of the right size."""

import dataclasses
import pathlib

import numpy as np
import pytest

from mtnlg import lm
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.infer import int8_cost
from mtnlg.infer.int8_cost import Reading
from tests.test_lm import CONFIG, TEXT, write_run

STORIES = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "data" / "models" / "stories15M"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose model has an opinion."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, init_std=0.5))
    return write_run(tmp_path_factory.mktemp("narrow") / "run", config)[0]


@pytest.fixture(scope="module")
def exact(folder):
    return lm.from_pretrained(folder, num_rows=int8_cost.NUM_TEXTS)


def test_nothing_is_lost_where_nothing_is_narrowed(exact):
    """Negative control: the same way, without eight bits."""
    first = int8_cost.written(exact.engine, [exact.tokenizer.eod_id])
    assert len(first.texts) == int8_cost.NUM_TEXTS and len({tuple(ids) for ids in first.texts}) > 10
    again = int8_cost.read(exact.engine, first.texts, own_text=True)
    cost = int8_cost.cost(first, again)
    assert (cost.nats, cost.standard_error) == (0, 0) and cost.weight_bytes[0] == cost.weight_bytes[1]
    assert exact.int8_cost is None and exact.notes == []


@pytest.mark.parametrize("own_text", [True, False])
def test_it_is_what_it_is_called(own_text):
    """Of two distributions over five tokens, of which the divergence is known; the error is that of the mean."""
    chance, (p, q) = np.random.default_rng(1), np.array([[0.5, 0.2, 0.1, 0.1, 0.1], [0.4, 0.25, 0.15, 0.1, 0.1]])
    drawn = [chance.choice(5, size=50, p=p) for _ in range(400)]
    readings = [Reading([list(ids) for ids in drawn], [np.log(of[ids]) for ids in drawn], own_text, 10, 3) for of in (p, q)]
    cost = int8_cost.cost(*readings)
    true = float(np.sum(p * np.log(p / q)))
    assert abs(cost.nats - true) < 4 * cost.standard_error < true
    ratio = q / p
    terms = ratio - 1 - np.log(ratio) if own_text else -np.log(ratio)
    deviation = np.sqrt(np.sum(p * terms**2) - np.sum(p * terms) ** 2)
    assert cost.standard_error == pytest.approx(deviation / np.sqrt(400 * 50), rel=0.1)
    assert cost.num_tokens == 400 * 50


@pytest.mark.parametrize("int8", [("weights",), ("cache",), ("weights", "cache")])
def test_it_is_small_and_told(folder, exact, int8):
    model = lm.from_pretrained(folder, int8=int8)
    cost = model.int8_cost
    assert 0 < cost.nats < 0.01 and 0 < cost.standard_error < cost.nats and cost.num_tokens == 16 * 32
    for name, (before, after) in (("weights", cost.weight_bytes), ("cache", cost.cache_bytes)):
        assert after < before if name in int8 else after == before
    (note,) = model.notes
    assert note.startswith("eight bits: weights of ") and f"they cost {cost.nats:.2g} ± " in note and "that the exact model wrote" in note


def test_it_is_the_divergence_of_whole_distributions(folder, exact):
    """The sums over the whole vocabulary at every place of the same texts: what is drawn is near to them."""
    reading = int8_cost.written(exact.engine, [exact.tokenizer.eod_id])
    model = lm.from_pretrained(folder, int8=("weights",))
    sums = []
    for ids in reading.texts[:6]:
        for length in range(1, 9):
            ((p,), (q,)) = ([dict(found.answer(ids[:length], **ASKED).tokens[0].likeliest)] for found in (exact, model))
            both = set(p) & set(q)
            sums.append(sum(np.exp(p[id]) * (p[id] - q[id]) - np.exp(p[id]) + np.exp(q[id]) for id in both))
    assert np.mean(sums) == pytest.approx(model.int8_cost.nats, rel=0.75)


ASKED = {"max_new_tokens": 1, "temperature": 0, "num_likeliest": 20}


def test_a_text_of_ones_own(folder, exact, tmp_path):
    """The loss on it through the cache, minus that of the exact model."""
    (tmp_path / "text").write_text(TEXT)
    model = lm.from_pretrained(folder, int8=("weights",), int8_text=tmp_path / "text")
    ids = [exact.tokenizer.eod_id, *exact.tokenizer.encode(TEXT)]
    parts = [ids[start : start + 48] for start in range(0, len(ids), 48)]
    losses = [-np.concatenate([[t.logprob for t in found.engine.score(part, 0)[1:]] for part in parts]) for found in (exact, model)]
    cost = model.int8_cost
    assert cost.nats == pytest.approx(np.mean(losses[1] - losses[0]), rel=1e-3, abs=1e-7)
    assert cost.num_tokens == len(losses[0]) and not cost.own_text and "more loss on" in model.notes[0]
    (tmp_path / "empty").write_text("")
    with pytest.raises(DataError, match="the text has no tokens"):
        lm.from_pretrained(folder, int8=("cache",), int8_text=tmp_path / "empty")
    (tmp_path / "bytes").write_bytes(b"\xff")
    for name in ("bytes", "none"):
        with pytest.raises(MissingInput, match="the text cannot be read"):
            lm.from_pretrained(folder, int8=("cache",), int8_text=tmp_path / name)


def test_the_exact_weights_are_gone(folder, monkeypatch):
    """No array of the exact engine lives when the narrowed one is ready."""
    engines, true = [], lm.Engine

    def noted(*arguments, **settings):
        engines.append(true(*arguments, **settings))
        return engines[-1]

    monkeypatch.setattr(lm, "Engine", noted)
    model = lm.from_pretrained(folder, int8=("weights",))
    assert len(engines) == 2 and engines[1] is model.engine
    assert engines[0].params is None and engines[0]._cache is None


@pytest.mark.skipif(not (STORIES / "model.safetensors").is_file(), reason=f"no {STORIES}")
def test_of_a_trained_model():
    cost = lm.from_pretrained(STORIES, int8=("weights", "cache")).int8_cost
    assert 1e-5 < cost.nats < 0.01 and cost.standard_error < cost.nats / 2
