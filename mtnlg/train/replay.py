"""The replay check: loss and gradients of one step, computed twice, have the same bits, or a device computes wrongly."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.errors import ReplayError
from mtnlg.core.tree import by_path
from mtnlg.parallel import processes
from mtnlg.train import step as steps
from mtnlg.train.checksum import checksums
from mtnlg.train.loop import Batch
from mtnlg.train.schedule import Position
from mtnlg.train.state import State


def program(config: schema.Config, mesh: Mesh) -> Callable:
    """The jitted (state, batch, num_microbatches, step, timetable) -> uint32 [1 + leaves]: of the loss and of every gradient."""
    sums = steps.scaled_sums(config, mesh)

    def of_step(*arguments):
        made = sums(*arguments)
        return checksums((made["loss"], made["grads"]))

    return jax.jit(of_step, out_shardings=NamedSharding(mesh, P()))


def require_same(program: Callable, state: State, batch: Batch, position: Position) -> None:
    """Before the step that comes after `position`. Raises ReplayError in every process, unless all devices find the same twice."""
    arguments = (state, batch.fields, batch.num_microbatches, position.step, batch.timetable)
    found = [program(*arguments) for _ in range(2)]
    own = [np.asarray(shard.data).tolist() for sums in found for shard in sums.addressable_shards]
    first, *others = [sums for said in processes.gathered(own) for sums in said]
    for other in others:
        if other != first:
            raise _differing(state, first, other, position, batch.num_samples)


def _differing(state: State, first: list[int], other: list[int], position: Position, num_samples: int) -> ReplayError:
    names = ["the loss", *(f"the gradient of {path}" for path in by_path(state.params))]
    wrong = [number for number, (a, b) in enumerate(zip(first, other, strict=True)) if a != b]
    at, more = wrong[0], f", and {len(wrong) - 1} more arrays differ" if len(wrong) > 1 else ""
    what = f"a step computed twice is not the same: {names[at]} has the checksums {first[at]:08x} and {other[at]:08x}{more}"
    where = f"step {position.step + 1}, samples {position.samples} to {position.samples + num_samples - 1}"
    return ReplayError(what, where, "the same command on other devices; it goes on from the last checkpoint")
