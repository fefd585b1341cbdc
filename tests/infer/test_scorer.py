"""Scores and vectors equal whole forwards of the NumPy oracle, on any mesh; long rows are read in windows, each place once."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from harness import config_of
from hypothesis import given
from hypothesis import strategies as st
from numpy_gpt import init, logits
from test_numpy_gpt import LLAMA, MTNLG

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.infer import scorer as scorers
from mtnlg.infer.engine import Engine
from mtnlg.infer.scorer import Scorer, windows
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import specs
from mtnlg.spmd import Laid

SEQ_LEN, BOUND = 24, 1e-5
SPECS = {"learned": MTNLG, "rope, untied": replace(LLAMA, num_kv_heads=2), "alibi": replace(MTNLG, position="alibi")}
MESHES = [
    {"data": 2, "tensor": 2},
    {"context": 2},
    {"tensor": 2, "sequence_parallel": True},
    {"replica": 2, "data": 2, "context": 2, "tensor": 2, "sequence_parallel": True},
]
LENGTHS = (2, 9, 1 + SEQ_LEN, 40, 75)


@functools.cache
def weights(name):
    return init(SPECS[name], SEQ_LEN, np.random.default_rng(1), biases=name != "rope, untied")


@functools.cache
def make(name, mesh=(), laid=Laid()):  # noqa: B008, a constant
    """A scorer on the oracle's parameters."""
    config = config_of(SPECS[name], SEQ_LEN, biases=name != "rope, untied", compute_dtype="float32", param_dtype="float32")
    config = replace(config, mesh=schema.Mesh(**dict(mesh)))
    made = meshes.make(config.mesh)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights(name))
    placed = jax.tree.map(jax.device_put, params, specs.shardings(made, specs.storage_table(config), params))
    return Scorer(Engine(config, made, placed, laid=laid))


@functools.cache
def rows():
    random = np.random.default_rng(2)
    return [random.integers(MTNLG.vocab_size, size=length).tolist() for length in LENGTHS]


def forward(name, ids, head=None):
    """The oracle's logits [L, V] of one row; with another head, that head's."""
    spec, params = SPECS[name], weights(name)
    if head is not None:
        spec, params = replace(spec, tied=False, vocab_size=len(head), padded_vocab_size=len(head)), params | {"head": {"kernel": head}}
    places = np.arange(len(ids))[None]
    return logits(spec, params, {"tokens": np.array([ids]), "positions": places, "segment_ids": np.ones_like(places)})[0]


def expected_scores(name, ids, first):
    """One token after the other, each in the window that counts it."""
    found = []
    for _, begin, counted, end in windows(0, first - 1, len(ids) - 1, SEQ_LEN):
        z_LV = forward(name, ids[begin:end])[:, : MTNLG.vocab_size]
        nll_LV = np.log(np.exp(z_LV).sum(-1, keepdims=True)) - z_LV
        found += [(nll_LV[place - begin, ids[place + 1]], z_LV[place - begin].argmax() == ids[place + 1]) for place in range(counted, end)]
    return map(np.array, zip(*found, strict=True))


def expected_mean(name, ids, first):
    states = []
    for _, begin, counted, end in windows(0, first, len(ids), SEQ_LEN):
        states += list(forward(name, ids[begin:end], head=np.eye(MTNLG.d_model))[counted - begin :])
    return np.mean(states, axis=0)


def same(got, expected) -> bool:
    return np.max(np.abs(got - expected)) < BOUND * np.max(np.abs(expected))


# Windows


@given(length=st.integers(1, 20), first=st.integers(0, 70), count=st.integers(0, 70))
def test_every_place_counts_once_after_half_a_window(length, first, count):
    found = list(windows(5, first, first + count, length))
    assert [place for window in found for place in range(window.first, window.end)] == list(range(first, first + count))
    for row, begin, counted, end in found:
        assert row == 5 and 0 <= begin <= counted < end <= begin + length
        assert begin == 0 or counted - begin >= length // 2
        assert begin == 0 or end - begin == length


# Against the oracle


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("first", [1, 2])
def test_scores_are_those_of_whole_forwards(name, first):
    """Rows of different lengths in one call: shorter than a window, as long, longer."""
    long_enough = [ids for ids in rows() if len(ids) > first]
    for ids, scores in zip(long_enough, make(name).scores(long_enough, [first] * len(long_enough)), strict=True):
        nll, greedy = expected_scores(name, ids, first)
        assert scores.nll.dtype == np.float64 and scores.nll.shape == (len(ids) - first,)
        assert same(scores.nll, nll)
        np.testing.assert_array_equal(scores.greedy, greedy)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("counted", ["all", "last"])
def test_means_are_those_of_whole_forwards(name, counted):
    firsts = [0 if counted == "all" else len(ids) - 1 for ids in rows()]
    means = make(name).means(rows(), firsts)
    assert means.dtype == np.float32 and means.shape == (len(LENGTHS), MTNLG.d_model)
    assert all(same(mean, expected_mean(name, ids, first)) for mean, ids, first in zip(means, rows(), firsts, strict=True))


# Meshes and batches


@pytest.mark.parametrize(("name", "mesh"), [*(("learned", mesh) for mesh in MESHES), ("rope, untied", MESHES[-1])])
def test_meshes_equal_one_device(name, mesh):
    alone, spread = make(name), make(name, tuple(mesh.items()))
    firsts = [1] * len(LENGTHS)
    for one, other in zip(alone.scores(rows(), firsts), spread.scores(rows(), firsts), strict=True):
        assert same(other.nll, one.nll)
        np.testing.assert_array_equal(other.greedy, one.greedy)
    assert same(spread.means(rows(), firsts), alone.means(rows(), firsts))


@pytest.mark.parametrize("mesh", [(), *(tuple(mesh.items()) for mesh in MESHES if "context" not in mesh)])
def test_layers_apart_score_the_same(mesh):
    """Their kernels are transposed, that of the head too."""
    stacked, apart, firsts = make("rope, untied"), make("rope, untied", mesh, Laid(apart=True)), [1] * len(LENGTHS)
    for one, other in zip(stacked.scores(rows(), firsts), apart.scores(rows(), firsts), strict=True):
        assert same(other.nll, one.nll)
    assert same(apart.means(rows(), firsts), stacked.means(rows(), firsts))


def test_rows_are_the_same_alone_and_in_any_batches(monkeypatch):
    scorer, firsts = make("learned"), [1] * len(LENGTHS)
    together, means = scorer.scores(rows(), firsts), scorer.means(rows(), firsts)
    monkeypatch.setattr(scorers, "TOKENS_AT_ONCE", 2 * SEQ_LEN)
    for number, ids in enumerate(rows()):
        for few in (scorer.scores([ids], [1])[0], scorer.scores(rows(), firsts)[number]):
            assert same(few.nll, together[number].nll)
        assert same(scorer.means([ids], [1])[0], means[number])


def test_few_programs_serve_all_lengths():
    scorer = make("learned", (("data", 2),))
    for count in (1, 2, 3, 4):
        scorer.scores([rows()[-1][:length] for length in range(2, 2 + SEQ_LEN)] * count, [1] * (SEQ_LEN * count))
    # 16 places or SEQ_LEN; and for each of the four counts its own power of two of rows, at most
    assert scorer._score._cache_size() <= 8


def test_weights_lie_once():
    """The weights that score are those that generate."""
    config = replace(make("learned").engine.config, mesh=schema.Mesh(zero=0))
    params = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights("learned")))
    engine = Engine(config, meshes.make(config.mesh), params)
    assert all(a is b for a, b in zip(jax.tree.leaves(engine.params), jax.tree.leaves(params), strict=True))


def test_nothing_to_read():
    assert make("learned").scores([], []) == []
    assert make("learned").means([], []).shape == (0, MTNLG.d_model)


@pytest.mark.parametrize("id", [-1, MTNLG.vocab_size])
def test_ids_beyond_the_vocabulary_are_refused(id):
    with pytest.raises(ConfigError, match="the text has ids beyond the vocabulary of 11"):
        make("learned").scores([[1, id]], [1])
    with pytest.raises(ConfigError, match="the text has ids beyond the vocabulary of 11"):
        make("learned").means([[1, id]], [0])
