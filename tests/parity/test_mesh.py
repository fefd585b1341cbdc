"""Any mesh, the same run: three optimizer steps in float64 beside the same three on one device.

A row of the table is a mesh, how state lies on it, and a model. `make test` takes the rows of FAST; test-slow takes every mesh with
every level of ZeRO, with and without sequence parallelism, the models in turn.
"""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from meshes import MODELS, ROWS, batch, config_of, on_one_device, three_steps, worst_difference

from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states

EXACT, SINGLE = 1e-9, 1e-5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


FAST = (
    # each axis alone
    ("mtnlg", {"tensor": 2}, {}),
    ("llama", {"tensor": 4, "sequence_parallel": True}, {"recompute": "selective"}),
    ("mtnlg", {"tensor": 8, "sequence_parallel": True}, {"recompute": "full"}),
    ("llama", {"tensor": 8}, {}),
    ("mtnlg", {"data": 2, "zero": 0}, {}),
    ("bloom", {"data": 4, "zero": 1}, {"microbatch_size": 2}),
    ("neox", {"data": 4, "zero": 2}, {"microbatch_size": 1}),
    ("mtnlg", {"data": 8, "zero": 3}, {}),
    ("bloom", {"replica": 2}, {}),
    ("neox", {"replica": 4}, {"microbatch_size": 2}),
    ("llama", {"replica": 8}, {}),
    # pairs
    ("llama", {"replica": 2, "data": 2, "zero": 2}, {"microbatch_size": 2}),
    ("neox", {"replica": 2, "tensor": 2, "sequence_parallel": True}, {}),
    ("bloom", {"data": 2, "tensor": 2, "zero": 1, "sequence_parallel": True}, {}),
    ("llama", {"data": 4, "tensor": 2, "zero": 3}, {"recompute": "selective"}),
    ("bloom", {"data": 2, "tensor": 4, "zero": 3, "sequence_parallel": True}, {"recompute": "full"}),
    # sequences in parts: alone, in pairs, with everything
    ("mtnlg", {"context": 2}, {"recompute": "selective"}),
    ("llama", {"context": 4}, {"recompute": "full"}),
    ("bloom", {"context": 8}, {}),
    ("neox", {"data": 2, "context": 2, "zero": 3}, {"microbatch_size": 2}),
    ("mtnlg", {"data": 2, "context": 4, "zero": 2}, {"microbatch_size": 2, "recompute": "full"}),
    ("bloom", {"replica": 2, "context": 4}, {"unroll_layers": True}),
    ("llama", {"context": 2, "tensor": 4}, {"recompute": "selective"}),
    ("llama", {"context": 4, "tensor": 2, "sequence_parallel": True}, {}),
    ("neox", {"data": 2, "context": 2, "tensor": 2, "zero": 0}, {}),
    ("llama", {"data": 2, "context": 2, "tensor": 2, "zero": 3, "sequence_parallel": True}, {"recompute": "full"}),
    ("mtnlg", {"replica": 2, "data": 2, "context": 2, "tensor": 2, "zero": 3, "sequence_parallel": True}, {"microbatch_size": 2}),
    ("bloom", {"replica": 2, "data": 2, "context": 2, "tensor": 2, "zero": 1}, {"recompute": "selective"}),
    # all three
    ("mtnlg", {"replica": 2, "data": 2, "tensor": 2, "zero": 3, "sequence_parallel": True}, {"microbatch_size": 2}),
    ("llama", {"replica": 2, "data": 2, "tensor": 2, "zero": 2, "sequence_parallel": True}, {"microbatch_size": 2}),
)

DEGREES = [d for d in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 8)) if 1 < math.prod(d) <= 8]


def every_mesh():
    """Each (replica, data, context, tensor) of up to 8 devices, with all that changes something on it; ZeRO 1 and 3 with context."""
    models = itertools.cycle(MODELS)
    for replica, data, context, tensor in DEGREES:
        for zero in (1,) if data == 1 else range(4) if context == 1 else (1, 3):
            for sequence_parallel in (False, True) if tensor > 1 else (False,):
                mesh = {"replica": replica, "data": data, "context": context, "tensor": tensor}
                train = {"microbatch_size": max(ROWS // (2 * replica * data), 1)}
                yield next(models), mesh | {"zero": zero, "sequence_parallel": sequence_parallel}, train


def name_of(case) -> str:
    model, mesh, train = case
    return "-".join(
        [model, *(f"{key}{int(value)}" for key, value in mesh.items() if value != 1 or key == "zero"), *map(str, train.values())]
    )


def check(model, mesh, train, bound=EXACT, **dtypes):
    config = config_of(model, mesh, **train, **dtypes)
    num_microbatches = config.train.batch_size // config.microbatch_rows
    alone = {"batch_size": config.train.batch_size, **dtypes}
    seen, expected = three_steps(config, num_microbatches), on_one_device(model, config.model.num_layers, **alone)
    jax.tree.map(np.testing.assert_array_equal, seen["initial"], expected["initial"])
    difference, where = worst_difference(seen, expected)
    print(f"{model} {mesh} {train}: {difference:.1e} ({where})")
    assert difference < bound, where
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), seen["final"], seen["initial"])
    assert min(jax.tree.leaves(moved)) > 0, "a parameter did not move, so its equality proves nothing"


@pytest.mark.parametrize("case", FAST, ids=name_of)
def test_three_steps_equal_one_device(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(every_mesh()), ids=name_of)
def test_every_mesh_equals_one_device(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("unroll_layers", [False, True])
def test_recomputation_and_unrolling_on_the_mesh(model, recompute, unroll_layers):
    mesh = {"replica": 2, "data": 2, "tensor": 2, "zero": 3, "sequence_parallel": True}
    check(model, mesh, {"recompute": recompute, "unroll_layers": unroll_layers})


# Narrower numbers


@pytest.mark.parametrize(
    "mesh", [{"data": 2, "tensor": 4, "zero": 2}, {"data": 2, "tensor": 4, "zero": 3}, {"context": 4, "tensor": 2}], ids=str
)
def test_float32_on_the_mesh(mesh):
    mesh = mesh | {"sequence_parallel": True}
    check("llama", mesh, {}, SINGLE, compute_dtype="float32", param_dtype="float32")


BF16_STEP = 2**-8  # half a unit in the last place of 1.0, relative


def relative(a, b) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("mesh", [{"tensor": 2, "zero": 1}, {"tensor": 2, "zero": 3}, {"context": 4, "zero": 1}], ids=str)
def test_bfloat16_and_its_sums(mesh):
    """bfloat16 on a mesh is no farther from float32 than on one device; sums in bfloat16 cost no more than a few roundings."""
    mesh = mesh | {"data": 4}
    narrow = {"compute_dtype": "bfloat16", "param_dtype": "float32"}
    exact = on_one_device("neox", compute_dtype="float32", param_dtype="float32")["first_moments"]
    alone = on_one_device("neox", **narrow)["first_moments"]
    there = three_steps(config_of("neox", mesh, **narrow))["first_moments"]
    summed = three_steps(config_of("neox", mesh, **narrow, reduce_dtype="bfloat16"))["first_moments"]
    leaves = zip(*(jax.tree.leaves(tree["blocks"]["mlp"]) for tree in (exact, alone, there, summed)), strict=True)
    for wide, one, mesh_leaf, narrow_sum in leaves:
        assert relative(mesh_leaf, wide) < 2 * relative(one, wide)
        assert 0 < relative(narrow_sum, mesh_leaf) < 3 * BF16_STEP, "two additions of four numbers, and the numbers themselves"


# How state lies


def test_state_lies_in_shards():
    """Each device holds what the storage table says, and no more: parameters and moments alike."""
    config = config_of("mtnlg", {"data": 2, "tensor": 4})
    state = states.make(config, meshes.make(config.mesh))
    down = state.params["blocks"]["mlp"]["down"]["kernel"]
    moment = state.optimizer[1].mu["blocks"]["mlp"]["down"]["kernel"]
    for leaf in (down, moment):
        assert leaf.shape == (2, 32, 16) and {shard.data.shape for shard in leaf.addressable_shards} == {(2, 8, 8)}
    whole = states.make(dataclasses.replace(config, mesh=schema.Mesh(data=2, tensor=4, zero=0)), meshes.make(config.mesh))
    assert {shard.data.shape for shard in whole.params["blocks"]["mlp"]["down"]["kernel"].addressable_shards} == {(2, 8, 16)}


def test_uneven_masks_would_show():
    """The devices' shares of the loss's weight differ, so that dividing before summing would be another number."""
    for step in range(3):
        weights = batch(step)["weights"].reshape(ROWS, -1).sum(axis=1)
        assert len(set(weights.reshape(8, -1).sum(axis=1).tolist())) > 4 and weights.min() == 0
