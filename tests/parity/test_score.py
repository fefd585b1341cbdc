"""Scoring against the NumPy oracle, and what the narrower number types cost: float32 and bfloat16 against the wider one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import config_of, error, worst
from numpy_gpt import flatten, logits, loss_and_grad, tree_map
from test_numpy_gpt import SEQ_LEN, VARIANTS, make

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.tree import map_with_path
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes

EXACT, SINGLE = 1e-9, 1e-5


# Scores


def scored(name):
    """An oracle's case in which rows of the padded vocabulary would win every place, and some targets are the likeliest token."""
    spec, params, batch, rng = make(name)
    padded = params["embedding"]["tokens"][spec.vocab_size :] if spec.tied else params["head"]["kernel"][:, spec.vocab_size :]
    padded[...] = 30 * rng.standard_normal(padded.shape)
    likeliest = logits(spec, params, batch)[..., : spec.vocab_size].argmax(-1)
    hits = np.arange(likeliest.size).reshape(likeliest.shape) % 3 == 0
    misses = (likeliest + 1 + rng.integers(spec.vocab_size - 1, size=likeliest.shape)) % spec.vocab_size
    batch["targets"] = np.where(hits, likeliest, misses).astype(np.int32)
    return spec, params, batch, hits


@pytest.mark.parametrize(("name", "chunk"), [("mtnlg", 5), ("mtnlg", 1024), ("qwen3", 7), ("neox", 5)])
def test_scores_are_the_oracles(name, chunk):
    """12 tokens in chunks of 5 and 7 leave a rest; neox has a head of its own."""
    spec, params, batch, hits = scored(name)
    assert spec.tied == (name != "neox") and spec.padded_vocab_size > spec.vocab_size
    z_BLV = logits(spec, params, batch)[..., : spec.vocab_size]
    target_BL = np.take_along_axis(z_BLV, batch["targets"][..., None], -1)[..., 0]
    with jax.enable_x64(True):
        config = config_of(spec, SEQ_LEN, VARIANTS[name][1], loss_chunk_tokens=chunk)
        nll_BL, greedy_BL = jax.jit(spmd.score(config, meshes.make(config.mesh)))(params, batch)
    assert nll_BL.dtype == np.float64
    assert error(nll_BL, np.log(np.exp(z_BLV).sum(-1)) - target_BL) < EXACT
    np.testing.assert_array_equal(greedy_BL, hits)


# float32


@pytest.mark.parametrize("name", ["mtnlg", "llama"])
def test_float32_against_the_float64_oracle(name):
    """Both start from the same numbers: parameters that float32 holds exactly."""
    spec, params, batch, _ = make(name)
    params = tree_map(np.float32, params)
    expected_loss, _, expected_grads = loss_and_grad(spec, tree_map(np.float64, params), batch)
    config = config_of(spec, SEQ_LEN, VARIANTS[name][1], compute_dtype="float32", param_dtype="float32", loss_chunk_tokens=5)
    stacked = {key: array[None] for key, array in batch.items()}
    sums = jax.jit(spmd.loss_and_grad(config, meshes.make(config.mesh)))(params, stacked, 1, 0)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(sums["grads"]))
    assert error(sums["loss"], expected_loss) < SINGLE
    worst_error, path = worst(sums["grads"], expected_grads)
    print(f"float32 parity of {name}: loss {error(sums['loss'], expected_loss):.2e}, gradients {worst_error:.2e} ({path})")
    assert worst_error < SINGLE, path
    assert worst_error > EXACT, "so exact that it was not computed in float32"


# bfloat16

ROWS, LENGTH, VOCAB = 4, 256, 64
# Relative L2 of a leaf. 2^-8 is the worst of one rounding to bfloat16: a sum over a thousand tokens may not cost more than that.
# A position's row is a sum over ROWS numbers only, which are themselves rounded, so nothing averages out.
BF16_BOUND, BF16_BOUND_OF_POSITIONS = 2**-8, 2**-7


def zipf_batch():
    """Long rows of few different tokens: the commonest one stands at three fifths of 1024 places, and mostly follows itself."""
    shares = 1 / np.arange(1, VOCAB + 1) ** 2
    ids = np.random.default_rng(0).choice(VOCAB, size=(ROWS, LENGTH + 1), p=shares / shares.sum()).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    ones = np.ones((ROWS, LENGTH))
    fields = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "positions": positions}
    fields |= {"segment_ids": ones.astype(np.int32), "weights": ones.astype(np.float32)}
    return {name: array[None] for name, array in fields.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_sums_gradients_wide(tied):
    """Gradients that are sums over many tokens (rows of the embedding, biases) lose no more than single products do."""
    model = schema.Model(1, 16, 2, vocab_size=VOCAB, vocab_multiple=VOCAB, seq_len=LENGTH, tie_embeddings=tied)
    random = np.random.default_rng(1)

    def fresh(path, leaf):
        mean, std = (1, 0) if path.endswith("/scale") else (0, 0) if path.endswith("/bias") else (0, model.init_std)
        return random.normal(mean, std, leaf.shape).astype(jnp.bfloat16).astype(np.float32)  # rounded, so that the cast costs nothing

    params = map_with_path(fresh, count.abstract_params(model))

    def gradients(compute_dtype):
        config = schema.Config(model=model, train=schema.Train(batch_size=ROWS, compute_dtype=compute_dtype, loss_chunk_tokens=300))
        return flatten(jax.jit(spmd.loss_and_grad(config, meshes.make(config.mesh)))(params, zipf_batch(), 1, 0)["grads"])

    narrow, wide = gradients("bfloat16"), gradients("float32")
    assert all(leaf.dtype == np.float32 for leaf in narrow.values())
    off = {path: float(np.linalg.norm(narrow[path] - wide[path]) / np.linalg.norm(wide[path])) for path in wide}
    print("\n".join(f"bfloat16 {'tied' if tied else 'untied'} {value:.4f} {path}" for path, value in sorted(off.items())))
    summed = {path: value for path, value in off.items() if path.startswith("embedding/") or path.endswith("/bias")}
    assert len(summed) == 2 + 8
    bounds = dict.fromkeys(summed, BF16_BOUND) | {"embedding/positions": BF16_BOUND_OF_POSITIONS}
    assert not {path: value for path, value in summed.items() if value >= bounds[path]}
    assert max(off.values()) > 1e-3, "so exact that it was not computed in bfloat16"
    commonest = [g["embedding/tokens"][np.bincount(zipf_batch()["tokens"].ravel()).argmax()] for g in (narrow, wide)]
    assert np.linalg.norm(commonest[0] - commonest[1]) < BF16_BOUND * np.linalg.norm(commonest[1])
