"""Reading a text in pieces through the cache gives what reading it at once gives; the block is the one of training."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import config_of, error
from test_numpy_gpt import SEQ_LEN, VARIANTS, make

from mtnlg.model import cache as caches
from mtnlg.model import transformer

TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a text has several, the last one not whole."""
    monkeypatch.setattr(caches, "BLOCK", 4)


NUM_SLOTS = 16  # for texts of fewer tokens


def setting(name):
    """The model, its parameters, and a batch of whole texts, one a row."""
    spec, params, batch, _ = make(name)
    rows = batch["tokens"].shape[0]
    batch = dict(batch) | {"segment_ids": np.ones((rows, SEQ_LEN), np.int32)}
    batch["positions"] = np.tile(np.arange(SEQ_LEN, dtype=np.int32), (rows, 1))
    return config_of(spec, SEQ_LEN, VARIANTS[name][1]).model, params, batch


def whole(model, params, batch):
    return np.asarray(jax.jit(functools.partial(transformer.hidden, model))(params, batch)[0])


def read_in_pieces(model, params, batch, borders, num_slots=NUM_SLOTS, forget=None, int8=False):
    """Hidden states [B, L, D] when the places between borders are read one after the other, the cache between them.

    forget: a slot whose keys and values are lost after the first piece.
    """
    cache = caches.empty(model, batch["tokens"].shape[0], num_slots, jnp.float64, int8=int8)
    params = jax.tree.map(jnp.asarray, params)
    read = jax.jit(lambda tokens, positions, cache: transformer.hidden_cached(model, params, tokens, positions, None, cache, jnp.float64))
    pieces = []
    for start, end in itertools.pairwise(borders):
        x_BLD, cache = read(*(batch[f][:, start:end] for f in ("tokens", "positions")), cache)
        pieces.append(x_BLD)
        if forget is not None and start == 0:
            cache = jax.tree.map(lambda a: a.at[:, :, :, forget].set(0), cache)
    return np.concatenate(pieces, axis=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_token_by_token_equals_at_once(name):
    model, params, batch = setting(name)
    assert error(read_in_pieces(model, params, batch, range(SEQ_LEN + 1)), whole(model, params, batch)) < TOLERANCE


@pytest.mark.parametrize("prefix", range(1, SEQ_LEN))
def test_every_prefix_length(prefix):
    model, params, batch = setting("qwen3")
    assert error(read_in_pieces(model, params, batch, [0, *range(prefix, SEQ_LEN + 1)]), whole(model, params, batch)) < TOLERANCE


def test_a_cache_that_forgets_is_noticed():
    """Negative control: with one slot lost, what comes after it differs."""
    model, params, batch = setting("llama")
    forgetful = read_in_pieces(model, params, batch, [0, SEQ_LEN // 2, SEQ_LEN], forget=1)
    assert error(forgetful[:, SEQ_LEN // 2 :], whole(model, params, batch)[:, SEQ_LEN // 2 :]) > 1e-3


@pytest.mark.parametrize("name", ["mtnlg", "llama"])
def test_more_slots_and_idle_neighbours_change_no_bit(name):
    """What one row computes depends neither on the room behind its text nor on whether another row has tokens."""
    model, params, batch = setting(name)
    alone = read_in_pieces(model, params, batch, range(SEQ_LEN + 1))
    np.testing.assert_array_equal(read_in_pieces(model, params, batch, range(SEQ_LEN + 1), num_slots=32), alone)
    idle = np.array(batch["positions"])
    idle[1:] = caches.IDLE
    others = read_in_pieces(model, params, batch | {"positions": idle}, range(SEQ_LEN + 1))
    np.testing.assert_array_equal(others[0], alone[0])


def test_one_row_of_many():
    """A text read into row 2 alone leaves the other rows as they were, and is what is read there."""
    model, params, batch = setting("llama")
    one = {name: field[:1] for name, field in batch.items()}
    cache = caches.empty(model, 3, NUM_SLOTS, jnp.float64)
    cache = jax.tree.map(lambda a: a + 1, cache)
    x_BLD, after = transformer.hidden_cached(model, params, one["tokens"], one["positions"], jnp.array(2), cache, jnp.float64)
    assert error(x_BLD, whole(model, params, one)) < TOLERANCE
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, :2], b[:, :2]), after, cache)
    assert np.all(np.asarray(after.keys)[:, 2, :, :SEQ_LEN] != 1) and np.all(np.asarray(after.keys)[:, 2, :, SEQ_LEN:] == 1)


def test_a_copied_prefix_is_read_as_its_own():
    model, params, batch = setting("llama")
    tokens, positions = batch["tokens"][:2], batch["positions"][:2]
    cache = caches.empty(model, 2, NUM_SLOTS, jnp.float64)
    _, cache = transformer.hidden_cached(model, params, tokens, positions, None, cache, jnp.float64)
    copied = caches.copy_prefix(cache, 0, 1, 1)
    for ours, theirs in zip(copied, cache, strict=True):
        np.testing.assert_array_equal(ours[:, 1, :, :4], theirs[:, 0, :, :4])
        np.testing.assert_array_equal(ours[:, 1, :, 4:], theirs[:, 1, :, 4:])
        np.testing.assert_array_equal(ours[:, 0], theirs[:, 0])


def test_a_cache_in_eight_bits_is_near():
    """And no nearer than eight bits are: else it was not used."""
    model, params, batch = setting("llama")
    distance = error(read_in_pieces(model, params, batch, range(SEQ_LEN + 1), int8=True), whole(model, params, batch))
    assert 1e-6 < distance < 0.05


@pytest.mark.parametrize("name", VARIANTS)
def test_causality_by_gradient(name):
    """The hidden state at a place has no gradient from the embedding of any token it must not see, and one from every token it may."""
    model, params, batch = setting(name)
    batch = {field: array[:1] for field, array in batch.items()}
    embedded = params["embedding"]["tokens"][batch["tokens"][0]]  # a row of its own for every place
    batch["tokens"] = np.arange(SEQ_LEN, dtype=np.int32)[None]

    def hidden_at(embedded, place):
        own = params | {"embedding": params["embedding"] | {"tokens": embedded}}
        return transformer.hidden(model, own, batch)[0][0, place] @ jnp.linspace(1.0, 2.0, model.d_model)

    gradient = jax.jit(jax.vmap(jax.grad(hidden_at), (None, 0)))(embedded, jnp.arange(SEQ_LEN))
    touched = np.max(np.abs(gradient), axis=-1) > 0
    segment, position = batch["segment_ids"][0], batch["positions"][0]
    reach = model.num_layers * (model.sliding_window - 1) if model.sliding_window else SEQ_LEN
    distance = position[:, None] - position[None, :]
    expected = (segment[:, None] == segment[None, :]) & (distance >= 0) & (distance <= reach)
    np.testing.assert_array_equal(touched, expected)
