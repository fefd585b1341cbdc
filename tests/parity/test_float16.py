"""Three steps in float16 on a mesh, put beside the same three on one device."""

import dataclasses
import functools

import pytest
from meshes import config_of, three_steps, worst_difference

from mtnlg.core import schema

ROUNDING = 2e-2  # of the worst leaf; float16 has 11 bits, and sums over devices are rounded in other places
FEW = [{"data": 2, "tensor": 2, "sequence_parallel": True, "zero": 2}, {"pipe": 2}]
MORE = [{"data": 2, "tensor": 2, "zero": 0}, {"data": 4, "zero": 3}]


def steps_on(**mesh) -> dict:
    """None of them overflows."""
    num_microbatches, size = (4, {"microbatch_size": 4}) if "pipe" in mesh else (1, {})
    config = config_of("mtnlg", mesh, compute_dtype="float16", param_dtype="float32", **size)
    seen = three_steps(dataclasses.replace(config, loss_scale=schema.LossScale(initial=2.0**12)), num_microbatches)
    assert not any(told.pop("overflows") for told in seen["metrics"])
    return seen


on_one_device = functools.cache(steps_on)


@pytest.mark.parametrize("mesh", FEW + [pytest.param(mesh, marks=pytest.mark.slow) for mesh in MORE], ids=str)
def test_on_a_mesh_it_is_that_of_one_device(mesh):
    error, where = worst_difference(steps_on(**mesh), on_one_device())
    assert 0 < error < ROUNDING, where
