"""What the forward keeps for the backward: with ZeRO 3 no whole weight, with sequence parallelism no activation of all places, of a
sequence in parts no scores."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core as jex

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.model import count, transformer
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states

# Sizes such that no activation is as large as a weight, and only what is stacked has as many as layers: 3 rows of 5 places a device.
MODEL = schema.Model(num_layers=7, d_model=28, num_heads=2, head_dim=10, d_ff=44, vocab_size=64, vocab_multiple=64, seq_len=5)
GATED = dataclasses.replace(MODEL, activation="swiglu", norm="rmsnorm", position="rope", tie_embeddings=False, qk_norm=True)


def scans(jaxpr):
    """Every scan in a program, however deep."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, jex.ClosedJaxpr):
                    yield from scans(inner.jaxpr)
                elif isinstance(inner, jex.Jaxpr):
                    yield from scans(inner)


ROWS = 3  # on each device


def sizes_kept(model, mesh, **train) -> set[int]:
    """Elements, a layer, of the arrays that the forward's scan over layers stacks for the backward."""
    config = schema.Config(model=model, train=schema.Train(batch_size=2 * ROWS, compute_dtype="bfloat16", **train), mesh=mesh)
    made = meshes.make(mesh)
    shape = (1, 2 * ROWS, model.seq_len)
    batch = {name: jnp.zeros(shape, jnp.float32 if name == "weights" else jnp.int32) for name in spmd.BATCH_FIELDS}
    traced = jax.make_jaxpr(spmd.loss_and_grad(config, made))(states.abstract(config, made).params, batch, 1, 0)
    kept = {
        math.prod(out.aval.shape) // model.num_layers
        for scan in scans(traced.jaxpr)
        if scan.params["length"] == model.num_layers
        for out in scan.outvars
        if out.aval.shape[:1] == (model.num_layers,) and not scan.params["reverse"]
    }
    assert kept, "no scan over layers was found, so nothing is proved"
    return kept


def whole_weights_kept(model, **train) -> list[str]:
    """Block kernels, tensor shards of them, of which a whole copy is kept."""
    mesh = schema.Mesh(data=2, tensor=2, zero=3)
    kept = sizes_kept(model, mesh, **train)
    kernels = {path: leaf for path, leaf in by_path(count.abstract_params(model)).items() if transformer.is_block_kernel(path)}
    return [path for path, leaf in kernels.items() if math.prod(leaf.shape) // model.num_layers // mesh.tensor in kept]


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("model", [MODEL, GATED], ids=["mtnlg", "gated"])
def test_no_whole_weight_is_kept_for_the_backward(model, recompute):
    assert whole_weights_kept(model, recompute=recompute) == []


def test_a_kept_weight_is_noticed(monkeypatch):
    """Negative control: with everything saved, every kernel is there."""
    monkeypatch.setattr(transformer, "saved", lambda *_, **__: True)
    assert len(whole_weights_kept(MODEL)) == 5


def test_saving_what_is_gathered_under_another_shape_is_noticed(monkeypatch):
    """Negative control: a policy that forgets the reshape of a weight."""
    saved = transformer.saved
    monkeypatch.setattr(transformer, "saved", lambda primitive, *_, **named: primitive.name == "reshape" or saved(primitive, **named))
    assert whole_weights_kept(MODEL) != []


def test_sequence_parallelism_keeps_only_the_devices_own_places(monkeypatch):
    """Of the residual stream and the norms a half, since what is gathered is gathered again (Korthikanti et al. 2022, section 4.2.2)."""
    model = dataclasses.replace(MODEL, seq_len=6)
    mesh = schema.Mesh(data=2, tensor=2, sequence_parallel=True)
    all_places = ROWS * model.seq_len * model.d_model
    kept = sizes_kept(model, mesh)
    assert all_places // 2 in kept and all_places not in kept
    monkeypatch.setattr(transformer, "saved", lambda *_, **__: True)
    assert all_places in sizes_kept(model, mesh)


def scores_kept(mesh, recompute) -> bool:
    """Whether scores or probabilities of a layer, [rows, heads of a device, L, L], are kept."""
    model = dataclasses.replace(MODEL, seq_len=6)
    return ROWS * (model.num_heads // mesh.tensor) * model.seq_len**2 in sizes_kept(model, mesh, recompute=recompute)


@pytest.mark.parametrize("mesh", [{"tensor": 2}, {"tensor": 2, "sequence_parallel": True}, {"tensor": 2, "zero": 3}], ids=str)
def test_selective_recomputation_keeps_no_scores(mesh):
    """Under the policies of ZeRO 3 and sequence parallelism too; without it they are there."""
    assert scores_kept(schema.Mesh(data=2, **mesh), "none") and not scores_kept(schema.Mesh(data=2, **mesh), "selective")


# Sequences in parts: two devices, of 12 places 6 each.

PARTS = dataclasses.replace(MODEL, seq_len=12)
SCORES = {ROWS * MODEL.num_heads * queries * keys for queries in (3, 6) for keys in (3, 6, 12)}
ALL_KEYS = 2 * ROWS * PARTS.seq_len * MODEL.num_heads * MODEL.head_dim


@pytest.mark.parametrize("mesh", [{}, {"zero": 3}, {"tensor": 2, "sequence_parallel": True}], ids=str)
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_of_a_sequence_in_parts_no_scores_are_kept(mesh, recompute):
    """Nor the keys and values of other devices; queries, own keys and values, what comes out and a number for each query are."""
    tensor = mesh.get("tensor", 1)
    kept = sizes_kept(PARTS, schema.Mesh(data=2, context=2, **mesh), recompute=recompute)
    assert not kept & {size // tensor for size in SCORES} and ALL_KEYS // tensor not in kept
    assert ROWS * 6 * MODEL.num_heads * MODEL.head_dim // tensor in kept


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_scores_of_a_whole_sequence_would_be_noticed(recompute):
    """Negative control: one device keeps them, unless they are computed again."""
    model = dataclasses.replace(MODEL, seq_len=6)
    kept = sizes_kept(model, schema.Mesh(data=2), recompute=recompute)
    assert (ROWS * MODEL.num_heads * 6 * 6 in kept) == (recompute == "none")
