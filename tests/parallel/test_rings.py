"""What a pipeline stage keeps between its ops: activations, and never a weight."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mtnlg import pipeline, spmd
from mtnlg.core import schema
from mtnlg.model import count, split, transformer
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import timetable
from mtnlg.train import state as states

# Sizes such that no activation is as large as a weight: a device has 3 rows of 5 places.
ROWS = 3
MODEL = schema.Model(num_layers=4, d_model=28, num_heads=2, head_dim=10, d_ff=44, vocab_size=64, vocab_multiple=64, seq_len=5)
GATED = dataclasses.replace(MODEL, activation="swiglu", norm="rmsnorm", position="rope", tie_embeddings=False, qk_norm=True)
DROPPING = dataclasses.replace(MODEL, dropout_hidden=0.1, dropout_attention=0.1)
TENSOR = 2


def rings_of(monkeypatch, model, schedule, recompute, num_microbatches=4, context=1) -> pipeline.Rings:
    """The shapes of a stage's rings."""
    seen, original = [], pipeline._empty_rings
    monkeypatch.setattr(pipeline, "_empty_rings", lambda *arguments: seen.append(original(*arguments)) or seen[-1])
    train = schema.Train(batch_size=ROWS * num_microbatches, microbatch_size=ROWS, compute_dtype="bfloat16", recompute=recompute)
    mesh, order = schema.Mesh(pipe=2, context=context, tensor=TENSOR), schema.Pipeline(schedule=schedule)
    config = schema.Config(model=model, train=train, mesh=mesh, pipeline=order)
    made = meshes.make(config.mesh)
    shape = (num_microbatches, ROWS, model.seq_len)
    batch = {name: jnp.zeros(shape, jnp.float32 if name == "weights" else jnp.int32) for name in spmd.BATCH_FIELDS}
    table = timetable.of(config, num_microbatches)
    jax.eval_shape(spmd.loss_and_grad(config, made), states.abstract(config, made).params, batch, num_microbatches, 0, table)
    return seen[0]


def weights_in(rings, model) -> list:
    """Leaves of a ring with as many elements, a layer, as a kernel or its tensor shard."""
    kernels, _ = split.parts(count.abstract_params(model)["blocks"])
    sizes = {math.prod(leaf.shape[1:]) // parts for leaf in kernels.values() for parts in (1, TENSOR)}
    return [leaf.shape for leaf in (*rings.kept, *rings.deferred) if math.prod(leaf.shape[2:]) in sizes]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("model", [MODEL, GATED, DROPPING], ids=["mtnlg", "gated", "dropping"])
def test_no_ring_holds_a_weight(monkeypatch, model, recompute):
    rings = rings_of(monkeypatch, model, "1f1b", recompute)
    assert rings.kept and rings.deferred and weights_in(rings, model) == []


def test_a_weight_in_a_ring_is_noticed(monkeypatch):
    """Negative control: a packing that finds nothing at hand keeps every kernel that a backward reads."""
    original = split._Packing.pack
    monkeypatch.setattr(split._Packing, "pack", lambda self, tree, at_hand: original(self, tree, ()))
    assert len(weights_in(rings_of(monkeypatch, MODEL, "1f1b", "none"), MODEL)) >= 5


@pytest.mark.parametrize("num_microbatches", [2, 4, 16])
def test_rings_are_as_long_as_microbatches_in_flight(monkeypatch, num_microbatches):
    """1F1B: P of them whatever the batch; GPipe: all."""
    for schedule, slots in (("1f1b", 2), ("gpipe", num_microbatches)):
        rings = rings_of(monkeypatch, MODEL, schedule, "none", num_microbatches)
        assert {leaf.shape[0] for leaf in rings.kept} == {slots} and {leaf.shape[0] for leaf in rings.deferred} == {1}


def test_recomputation_keeps_activations_of_one_microbatch(monkeypatch):
    """And in the mailbox the inputs of those in flight."""
    rings = rings_of(monkeypatch, MODEL, "1f1b", "full", 8)
    assert {leaf.shape[0] for leaf in rings.kept} == {1}
    assert rings.mailbox.shape == (2 + 1 + 1, ROWS, MODEL.seq_len, MODEL.d_model), "P inputs, what the last F made, and the spare"


def test_selective_recomputation_keeps_no_scores(monkeypatch):
    scores = ROWS * (MODEL.num_heads // TENSOR) * MODEL.seq_len**2
    sizes = {recompute: {math.prod(leaf.shape[2:]) for leaf in rings_of(monkeypatch, MODEL, "1f1b", recompute).kept if leaf.dtype != bool}
             for recompute in ("none", "selective")}  # fmt: skip
    assert scores in sizes["none"] and scores not in sizes["selective"]


def test_attentions_dropout_is_kept_not_drawn_again(monkeypatch):
    mask = (ROWS, MODEL.num_heads // TENSOR, MODEL.seq_len, MODEL.seq_len)
    masks = {recompute: [leaf.shape[2:] for leaf in rings_of(monkeypatch, DROPPING, "1f1b", recompute).kept if leaf.dtype == bool]
             for recompute in ("none", "selective")}  # fmt: skip
    assert mask in masks["none"] and mask not in masks["selective"]


def test_of_a_sequence_in_parts_only_the_result_is_kept(monkeypatch):
    """And the logarithm of the softmax's sum; not the partial results of each pair of chunks."""
    model = dataclasses.replace(MODEL, seq_len=16)
    alone, parted = (rings_of(monkeypatch, model, "1f1b", "selective", context=context).kept for context in (1, 4))
    assert len(parted) <= len(alone) and max(leaf.ndim for leaf in parted) <= max(leaf.ndim for leaf in alone)
    of_places = {math.prod(leaf.shape[2:]) for leaf in alone}
    assert {4 * math.prod(leaf.shape[2:]) for leaf in parted if leaf.dtype != bool} <= of_places | {4 * 2 * ROWS * 4, 4 * ROWS * 4}


def test_gathered_keys_are_gathered_again_not_kept(monkeypatch):
    """With its control: a policy that keeps what is gathered."""
    model, all_keys = dataclasses.replace(MODEL, seq_len=16), 2 * ROWS * 16 * (MODEL.num_heads // TENSOR) * MODEL.head_dim

    def is_kept():
        kept = rings_of(monkeypatch, model, "1f1b", "none", context=4).kept
        return all_keys in {math.prod(leaf.shape[2:]) for leaf in kept}

    assert not is_kept()
    monkeypatch.setattr(transformer, "saved", lambda *_, **__: True)
    assert is_kept()


def test_what_two_kernels_read_is_kept_once(monkeypatch):
    """Query and key/value read the same; so do gate and up."""
    rows = (ROWS, MODEL.seq_len, MODEL.d_model)
    deferred = rings_of(monkeypatch, GATED, "1f1b", "none").deferred
    assert sum(leaf.shape[2:] == rows for leaf in deferred) == 2 + 2, "inputs of attention and feed-forward, gradients of what leaves them"
