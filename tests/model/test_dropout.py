"""Dropout masks depend on (seed, step, layer, site, sample, place or head) and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtnlg import spmd
from mtnlg.core import prng, schema
from mtnlg.model import transformer
from mtnlg.parallel import mesh as meshes

RATE = 0.3


def dropout(samples=range(4), places=range(8), step=0, keys=range(8)):
    places_L = jnp.asarray(list(places))
    return prng.Dropout(prng.key(7, prng.DROPOUT, step), jnp.asarray(list(samples)), places_L, places_L, jnp.asarray(list(keys)))


def test_hidden_mask_of_a_sample_and_place_is_the_same_wherever_it_is_computed():
    whole = dropout().hidden(jnp.ones((4, 8, 16)), prng.MLP_OUTPUT, RATE)
    part = dropout(samples=[2, 3], places=range(4, 8)).hidden(jnp.ones((2, 4, 16)), prng.MLP_OUTPUT, RATE)
    np.testing.assert_array_equal(whole[2:, 4:], part)


def test_attention_mask_follows_the_global_head():
    whole = dropout().attention(jnp.ones((4, 6, 8, 8)), jnp.arange(6), RATE)
    part = dropout(samples=[1]).attention(jnp.ones((1, 2, 8, 8)), jnp.array([4, 5]), RATE)
    np.testing.assert_array_equal(whole[1:2, 4:], part)


def test_attention_mask_follows_the_places_of_queries_and_keys():
    whole = dropout().attention(jnp.ones((4, 6, 8, 8)), jnp.arange(6), RATE)
    part = dropout(places=[6, 1], keys=[7, 0, 3]).attention(jnp.ones((4, 6, 2, 3)), jnp.arange(6), RATE)
    np.testing.assert_array_equal(whole[:, :, [6, 1]][..., [7, 0, 3]], part)


def test_attention_is_dropped_at_its_rate():
    x = dropout(range(16), range(32), keys=range(64)).attention(jnp.ones((16, 4, 32, 64)), jnp.arange(4), RATE)
    assert float(jnp.mean(x > 0)) == pytest.approx(1 - RATE, abs=5 * (RATE * (1 - RATE) / x.size) ** 0.5)
    np.testing.assert_allclose(x[x > 0], 1 / (1 - RATE), rtol=1e-6)


@pytest.mark.parametrize("other", [dropout(step=1), dropout(samples=range(4, 8)), dropout(places=range(8, 16)), dropout().at_layer(3)])
def test_step_sample_place_and_layer_all_matter(other):
    x = jnp.ones((4, 8, 64))
    assert np.any(dropout().hidden(x, prng.MLP_OUTPUT, RATE) != other.hidden(x, prng.MLP_OUTPUT, RATE))
    assert np.any(dropout().hidden(x, prng.MLP_OUTPUT, RATE) != dropout().hidden(x, prng.ATTENTION_OUTPUT, RATE))


def test_rate_and_scale():
    x = dropout(range(16), range(32)).hidden(jnp.ones((16, 32, 64)), prng.MLP_OUTPUT, RATE)
    kept = float(jnp.mean(x > 0))
    assert kept == pytest.approx(1 - RATE, abs=5 * (RATE * (1 - RATE) / x.size) ** 0.5)
    np.testing.assert_allclose(x[x > 0], 1 / (1 - RATE), rtol=1e-6)


@pytest.mark.parametrize("sites", [{"dropout_hidden": 0.2}, {"dropout_attention": 0.2}])
def test_one_batch_or_two_microbatches_draw_the_same_masks(sites):
    model = schema.Model(num_layers=2, d_model=16, num_heads=2, vocab_size=50, vocab_multiple=8, seq_len=8, init_std=0.3, **sites)
    config = schema.Config(model=model, train=schema.Train(batch_size=4))
    params = transformer.init(model, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 50, (4, 8)).astype(np.int32)
    ones = np.ones((4, 8), np.int32)
    batch = {
        "tokens": tokens,
        "targets": tokens,
        "positions": ones.cumsum(1, dtype=np.int32) - 1,
        "segment_ids": ones,
        "weights": ones * 1.0,
    }
    program = jax.jit(spmd.loss_and_grad(config, meshes.make(config.mesh)))
    at_once = program(params, {k: v.reshape(1, 4, 8).astype(v.dtype) for k, v in batch.items()}, 1, 5)
    in_two = program(params, {k: v.reshape(2, 2, 8) for k, v in batch.items()}, 2, 5)
    np.testing.assert_allclose(at_once["loss"], in_two["loss"], rtol=1e-6)
    other_step = program(params, {k: v.reshape(1, 4, 8) for k, v in batch.items()}, 1, 6)
    assert abs(float(other_step["loss"] - at_once["loss"])) > 1e-4
