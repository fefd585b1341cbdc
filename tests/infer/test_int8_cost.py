"""The cost of eight bits: nothing where nothing is narrowed, the true divergence where that is known, and of the right size."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from mtnlg import engines, lm
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.core.tree import map_with_path
from mtnlg.infer import int8_cost
from mtnlg.infer.engine import Engine
from mtnlg.infer.int8_cost import Reading
from mtnlg.model.int8 import narrow, wide
from mtnlg.model.layers import num_input_dims
from mtnlg.spmd import Laid
from tests.test_lm import CONFIG, TEXT, plain, write_run

STORIES = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "data" / "models" / "stories15M"


WIDE = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, init_std=0.5))  # a model that has an opinion


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, parameters)."""
    return write_run(tmp_path_factory.mktemp("narrow") / "run", WIDE)


@pytest.fixture(scope="module")
def folder(run):
    return run[0]


@pytest.fixture(scope="module")
def exact(folder):
    return lm.from_pretrained(folder, num_rows=int8_cost.NUM_TEXTS)


@pytest.fixture(scope="module")
def first(exact):
    return int8_cost.written(exact.engine, [exact.tokenizer.eod_id])


@pytest.fixture(scope="module")
def narrowed(folder):
    return lm.from_pretrained(folder, int8=("weights", "cache"))


def test_nothing_is_lost_where_nothing_is_narrowed(exact, first):
    """Negative control: the same way, without eight bits."""
    assert len(first.texts) == int8_cost.NUM_TEXTS and len({tuple(ids) for ids in first.texts}) > 10
    again = int8_cost.read(exact.engine, first.texts, own_text=True)
    cost = int8_cost.cost(first, again)
    assert (cost.nats, cost.standard_error) == (0, 0) and cost.weight_bytes[0] == cost.weight_bytes[1]
    assert exact.int8_cost is None and exact.notes == ()


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


def test_it_is_small_and_told(narrowed):
    cost = narrowed.int8_cost
    assert 0 < cost.nats < 0.01 and 0 < cost.standard_error < cost.nats and cost.num_tokens == 16 * 32
    (note,) = narrowed.notes
    assert note.startswith("eight bits: weights of ") and f"they cost {cost.nats:.2g} ± " in note and "that the exact model wrote" in note


@pytest.mark.parametrize("settings", [{"laid": Laid(int8=True)}, {"int8_cache": True}], ids=["weights", "cache"])
def test_each_of_them_costs_and_saves(run, exact, first, settings):
    engine = Engine(exact.engine.config, exact.engine.mesh, run[1], exact.engine.num_ids, **settings)
    cost = int8_cost.cost(first, int8_cost.read(engine, first.texts, own_text=True))
    assert 0 < cost.nats < 0.01
    assert (cost.weight_bytes[1] < cost.weight_bytes[0], cost.cache_bytes[1] < cost.cache_bytes[0]) == (
        "laid" in settings,
        "laid" not in settings,
    )
    if "laid" in settings:
        assert abs(cost.nats - divergence(run[1], first.texts)) < 4 * cost.standard_error


def divergence(params, texts) -> float:
    """Nats per token, of the whole distributions at every place, by whole forwards with weights that are narrowed and made wide again."""

    def rounded(path, leaf):
        if not path.startswith("blocks/") or not path.endswith("/kernel"):
            return leaf
        return jax.vmap(lambda one: wide(narrow(one, tuple(range(num_input_dims(path)))), one.dtype))(leaf)

    found = []
    for ids in texts:
        p, q = (plain(given, ids)[1][:-1, :300].astype(np.float64) for given in (params, map_with_path(rounded, params)))
        p, q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (p, q))
        found.append(np.sum(np.exp(p) * (p - q), axis=-1))
    return float(np.mean(found))


def test_a_text_of_ones_own(folder, exact, tmp_path, monkeypatch):
    """The loss on it through the cache, minus that of the exact model."""
    (tmp_path / "text").write_text(TEXT)
    made = []
    monkeypatch.setattr(engines, "Engine", lambda *given, **settings: made.append(Engine(*given, **settings)) or made[-1])
    model = lm.from_pretrained(folder, int8=("weights",), int8_text=tmp_path / "text")
    assert made[1] is model.engine and made[0].params is None and made[0]._cache is None, "the exact weights are gone"
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


@pytest.mark.slow
@pytest.mark.skipif(not (STORIES / "model.safetensors").is_file(), reason=f"no {STORIES}")
def test_of_a_trained_model():
    cost = lm.from_pretrained(STORIES, int8=("weights", "cache")).int8_cost
    assert 1e-5 < cost.nats < 0.01 and cost.standard_error < cost.nats / 2
