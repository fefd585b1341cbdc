"""Runs of three optimizer steps on a mesh, to be put beside the same three on one device."""

import dataclasses
import functools

import jax
import numpy as np
from harness import worst

from mtnlg.core import schema
from mtnlg.parallel import arrangement, timetable
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states
from mtnlg.train import step as steps

ROWS, LENGTH, LEARNING_RATES = 16, 16, (3e-3, 2e-3, 1e-3)
SMALL = {"num_layers": 2, "d_model": 16, "num_heads": 8, "head_dim": 4, "d_ff": 32, "vocab_size": 27, "vocab_multiple": 32}
MODELS = {
    "mtnlg": schema.Model(**SMALL, seq_len=LENGTH, init_std=0.3, dropout_hidden=0.1, dropout_attention=0.1),
    "llama": schema.Model(
        **SMALL, seq_len=LENGTH, init_std=0.3, num_kv_heads=2, position="rope", norm="rmsnorm", activation="swiglu", tie_embeddings=False,
        qk_norm=True, sliding_window=3, bias_qkv=False, bias_attention_output=False, bias_mlp=False,
    ),
    "neox": schema.Model(
        **SMALL, seq_len=LENGTH, init_std=0.3, position="rope", rope_fraction=0.5, parallel_residual=True, activation="gelu_exact",
        tie_embeddings=False,
    ),
    "bloom": schema.Model(
        **SMALL, seq_len=LENGTH, init_std=0.3, num_kv_heads=4, position="alibi", activation="relu", qk_norm=True, dropout_attention=0.2
    ),
}  # fmt: skip


def config_of(model: str, mesh: dict | None = None, num_layers: int = 2, pipeline: dict | None = None, **train) -> schema.Config:
    """A config in float64 (unless `train` says otherwise) that clips, decays, and has an Adam epsilon to judge updates by."""
    degrees, order = schema.Mesh(**(mesh or {})), schema.Pipeline(**(pipeline or {}))
    train = {"compute_dtype": "float64", "param_dtype": "float64", "batch_size": ROWS, "loss_chunk_tokens": 40} | train
    optimizer = schema.Optimizer(eps=1e-2, clip_norm=0.05, weight_decay=0.1)
    shape = dataclasses.replace(MODELS[model], num_layers=num_layers)
    return schema.Config(model=shape, train=schema.Train(**train), optimizer=optimizer, mesh=degrees, pipeline=order)


def batch(seed: int, num_microbatches: int = 1, rows: int = ROWS) -> dict:
    """Packed documents, padding (one more segment), fractional weights.

    Some rows count for nothing, so that devices have uneven shares of the loss.
    """
    random = np.random.default_rng(seed)
    begins = random.random((rows, LENGTH)) < 0.2
    begins[:, 0] = True
    places = np.broadcast_to(np.arange(LENGTH), begins.shape)
    segment_ids = np.cumsum(begins, axis=1)
    positions = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    padding = places >= random.integers(3, LENGTH + 1, (rows, 1))
    weights = random.choice([0, 0.3, 1, 1.7], begins.shape) * ~padding
    weights[random.random(rows) < 0.3] = 0
    fields = {
        "tokens": random.integers(SMALL["vocab_size"], size=begins.shape),
        "targets": random.integers(SMALL["vocab_size"], size=begins.shape),
        "positions": np.where(padding, places, positions),
        "segment_ids": np.where(padding, 0, segment_ids),
        "weights": weights,
    }
    dtype = {"weights": np.float32}
    return {name: a.astype(dtype.get(name, np.int32)).reshape(num_microbatches, -1, LENGTH) for name, a in fields.items()}


def three_steps(config: schema.Config, num_microbatches: int = 1) -> dict:
    """What a run of three steps shows: initial and final parameters, the first step's moments, and each step's metrics, on the host."""
    mesh = meshes.make(config.mesh)
    program, state, seen = steps.make(config, mesh), states.make(config, mesh), {"metrics": []}
    table = timetable.on_mesh(config, mesh, num_microbatches)

    def on_host(tree):
        return jax.device_get(arrangement.canonical(config, mesh, tree))

    seen["initial"] = on_host(state.params)
    for number, rate in enumerate(LEARNING_RATES):
        fields = meshes.put(mesh, batch(number, num_microbatches, config.train.batch_size), jax.P(None, *meshes.BATCH))
        state, metrics = program(state, fields, num_microbatches, number, rate, True, table)
        told = jax.device_get(metrics)
        assert not told.pop("skipped")
        seen["metrics"].append(told)
        if number == 0:
            seen["first_moments"] = on_host(state.optimizer[1].mu)  # the clipped gradient, times 1 - beta1
    return seen | {"final": on_host(state.params)}


@functools.cache
def on_one_device(model: str, num_layers: int = 2, **train) -> dict:
    """The run that every mesh has to repeat. Accumulation is another order of the same sum, so one microbatch serves all."""
    return three_steps(config_of(model, num_layers=num_layers, **train))


def worst_difference(seen: dict, expected: dict) -> tuple[float, str]:
    """(error, where) over the losses and norms of all steps, the first step's gradients and the final parameters."""
    found = [worst(seen[name], expected[name]) for name in ("first_moments", "final")]
    for number, (ours, theirs) in enumerate(zip(seen["metrics"], expected["metrics"], strict=True)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(theirs):
            got = functools.reduce(lambda tree, key: tree[key.key], path, ours)
            found.append((float(np.max(np.abs(got - leaf)) / np.max(np.abs(leaf))), f"step {number} {jax.tree_util.keystr(path)}"))
    return max(found)
