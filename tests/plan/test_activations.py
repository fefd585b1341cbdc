"""The bytes of a stage's rings: those that the executor allocates, and by arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mtnlg import pipeline, spmd
from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import timetable
from mtnlg.plan import activations
from mtnlg.train import state as states

MODEL = schema.Model(num_layers=6, d_model=32, num_heads=4, vocab_size=64, vocab_multiple=64, seq_len=8)
GATED = dataclasses.replace(MODEL, num_kv_heads=1, activation="swiglu", norm="rmsnorm", position="rope", qk_norm=True, tie_embeddings=False)
DROPPED = dataclasses.replace(MODEL, dropout_hidden=0.1, dropout_attention=0.1, bias_mlp=False)

CASES = {
    "one device a stage": (MODEL, {}, {}, "1f1b"),
    "a layer less on a stage": (dataclasses.replace(MODEL, num_layers=5), {}, {}, "zero_bubble"),
    "bfloat16, attention again": (MODEL, {"compute_dtype": "bfloat16", "recompute": "selective"}, {}, "zb_v"),
    "tensor, everything again": (GATED, {"compute_dtype": "bfloat16", "recompute": "full"}, {"tensor": 2}, "1f1b"),
    "sequences in parts": (DROPPED, {}, {"tensor": 2, "sequence_parallel": True}, "interleaved"),
    "data, attention again": (GATED, {"recompute": "selective"}, {"data": 2, "tensor": 2, "sequence_parallel": True, "zero": 2}, "1f1b"),
    "parts of contexts": (GATED, {"compute_dtype": "bfloat16"}, {"context": 2}, "zb_v"),
    "parts of contexts with dropout": (DROPPED, {}, {"context": 2, "tensor": 2, "sequence_parallel": True}, "1f1b"),
}


@pytest.mark.parametrize("case", CASES)
def test_they_are_what_the_executor_allocates(case, monkeypatch):
    model, train, mesh, name = CASES[case]
    mesh = schema.Mesh(pipe=2, **mesh)
    train = schema.Train(batch_size=8 * mesh.data, microbatch_size=2, **train)
    config = schema.Config(model=model, train=train, mesh=mesh, pipeline=schema.Pipeline(schedule=name))
    allocated, made = [], pipeline.Rings

    def remember(*rings):
        allocated.append([sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(ring)) for ring in rings])
        return made(*rings)

    monkeypatch.setattr(pipeline, "Rings", remember)
    on = meshes.make(mesh)
    shape = (4, 2 * mesh.data, model.seq_len)
    batch = {name: jnp.zeros(shape, jnp.float32 if name == "weights" else jnp.int32) for name in spmd.BATCH_FIELDS}
    jax.eval_shape(spmd.loss_and_grad(config, on), states.abstract(config, on).params, batch, 4, 0, timetable.of(config, 4))

    slot, sizes = activations.slot_bytes(config), timetable.sizes(config)
    assert allocated[0] == [(sizes.mail + 1) * slot.mail, sizes.kept * slot.kept, sizes.deferred * slot.deferred]
    assert slot.of((1, 0, 0)) == slot.mail and slot.of(sizes) == sum(allocated[0]) - slot.mail


def test_by_arithmetic():
    """B leaves to W the inputs of every product and the gradients of its outputs, of each layer of a stage."""
    train = schema.Train(batch_size=4, microbatch_size=1, compute_dtype="bfloat16", recompute="full")
    config = schema.Config(model=MODEL, train=train, mesh=schema.Mesh(pipe=2, tensor=2))
    width, heads, columns = 32, 16, 64  # of one device
    taps = (width + heads + 2 * heads) + (heads + width) + (width + columns) + (columns + width)  # two products have one input
    slot = activations.slot_bytes(config)
    assert slot.mail == 8 * width * 2
    assert slot.deferred == 3 * 8 * taps * 2
