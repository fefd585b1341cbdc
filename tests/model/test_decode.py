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


def setting(name):
    """The model, its parameters, and a packed batch: two documents in a row, and a row with padding."""
    spec, params, batch, _ = make(name)
    return config_of(spec, SEQ_LEN, VARIANTS[name][1]).model, params, batch


def read_in_pieces(model, params, batch, borders):
    """Hidden states [B, L, D] when the places between borders are read one after the other, the cache between them."""
    rows, length = batch["tokens"].shape
    cache = caches.empty(model, rows, length, jnp.float64)
    read = jax.jit(functools.partial(transformer.hidden_cached, model))
    pieces = []
    for start, end in itertools.pairwise(borders):
        fields = (batch[f][:, start:end] for f in ("tokens", "positions", "segment_ids"))
        slots = np.broadcast_to(np.arange(start, end, dtype=np.int32), (rows, end - start))
        x_BLD, cache = read(params, *fields, slots, cache)
        pieces.append(x_BLD)
    return np.concatenate(pieces, axis=1)


def check_equal_at_once(model, params, batch, borders):
    """Where there is text: places of padding share a position, so they see each other only when read at once."""
    whole, _ = jax.jit(functools.partial(transformer.hidden, model))(params, batch)
    text = batch["segment_ids"] > 0
    assert error(read_in_pieces(model, params, batch, borders)[text], np.asarray(whole)[text]) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_token_by_token_equals_at_once(name):
    check_equal_at_once(*setting(name), range(SEQ_LEN + 1))


@pytest.mark.parametrize("prefix", range(1, SEQ_LEN))
def test_every_prefix_length(prefix):
    check_equal_at_once(*setting("qwen3"), [0, *range(prefix, SEQ_LEN + 1)])


def test_a_cache_that_forgets_is_noticed():
    """Negative control: with the slots of the first half marked empty, the rest differs."""
    model, params, batch = setting("llama")
    rows = batch["tokens"].shape[0]
    whole, _ = transformer.hidden(model, params, batch)
    cache = caches.empty(model, rows, SEQ_LEN, jnp.float64)
    half = SEQ_LEN // 2
    fields = [(batch[f][:, :half], batch[f][:, half:]) for f in ("tokens", "positions", "segment_ids")]
    slots = np.broadcast_to(np.arange(SEQ_LEN, dtype=np.int32), (rows, SEQ_LEN))
    _, cache = transformer.hidden_cached(model, params, *(f[0] for f in fields), slots[:, :half], cache)
    cache = cache._replace(segment_ids_BS=jnp.full_like(cache.segment_ids_BS, caches.EMPTY))
    x_BLD, _ = transformer.hidden_cached(model, params, *(f[1] for f in fields), slots[:, half:], cache)
    assert error(x_BLD, whole[:, half:]) > 1e-3


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
