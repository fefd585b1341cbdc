"""The schedule of a step as arrays: an input of the compiled step, so that one program serves every batch of a ramp."""

import functools
import hashlib
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.parallel import orders, program, schedule, stages

COLUMNS = ("op", "microbatch", "chunk", "virtual_stage", "mail", "from_previous", "from_next", "from_self", "kept", "deferred")
SPECS = {name: P(None, "pipe") for name in COLUMNS} | {"num_ticks": P()}


class Sizes(NamedTuple):
    """Slots of a stage's rings, the same for every batch of a run; beside them the mailbox has a spare."""

    mail: int
    kept: int
    deferred: int


def of(config: schema.Config, num_microbatches: int) -> dict[str, np.ndarray] | None:
    """{column: int32 [T, P]} with T enough for the largest batch, and `num_ticks`, how many of them count; None without a pipeline."""
    if config.mesh.pipe == 1:
        return None
    longest = max(len(of_microbatches(config, number).ops) for number in numbers_of_microbatches(config))
    made = program.compile(of_microbatches(config, num_microbatches), sizes(config))
    return _columns(program.pad(made, longest)) | {"num_ticks": np.int32(len(made.op))}


@functools.cache
def on_mesh(config: schema.Config, mesh: Mesh, num_microbatches: int) -> dict[str, jax.Array] | None:
    """`of`, as global arrays, each stage its column."""
    table = of(config, num_microbatches)
    if table is None:
        return None

    def put(array, spec):
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    return {name: put(array, SPECS[name]) for name, array in table.items()}


def abstract(config: schema.Config, mesh: Mesh, num_microbatches: int) -> dict[str, jax.ShapeDtypeStruct] | None:
    """Shapes, dtypes and shardings of `on_mesh`; nothing is allocated."""
    table = of(config, num_microbatches)
    place = lambda name, array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, SPECS[name]))  # noqa: E731
    return table and {name: place(name, array) for name, array in table.items()}


def forward_only(config: schema.Config, num_microbatches: int) -> tuple[dict[str, np.ndarray], Sizes]:
    """The timetable that scores so many microbatches, and the slots that it needs."""
    made = program.compile(orders.forward_only(stages.of(config).placement, num_microbatches))
    return _columns(made) | {"num_ticks": np.int32(len(made.op))}, Sizes(*made.sizes)


def require(config: schema.Config) -> None:
    """Raises ConfigError unless every batch of a run has its timetable, and every layer its stage."""
    if config.mesh.pipe > 1:
        stages.of(config)
        sizes(config)


def digest(config: schema.Config) -> str:
    """What the largest batch's timetable is, in few letters: a table of one's own may differ between hosts."""
    table = of(config, numbers_of_microbatches(config)[-1]) or {}
    return hashlib.sha256(b"".join(array.tobytes() for array in table.values())).hexdigest()[:16]


@functools.cache
def sizes(config: schema.Config) -> Sizes:
    """As many slots as the batch that needs most. Raises ConfigError for a batch that the schedule cannot serve."""
    return Sizes(*program.common_sizes(program.compile(of_microbatches(config, number)) for number in numbers_of_microbatches(config)))


def numbers_of_microbatches(config: schema.Config) -> range:
    """How many microbatches the steps of a run have, along the ramp."""
    train, rows = config.train, config.microbatch_rows
    first = train.ramp_start_size or train.batch_size
    return range(first // rows, train.batch_size // rows + 1, max(train.ramp_increment // rows, 1))


def of_full_batch(config: schema.Config) -> schedule.Schedule:
    """The schedule of the largest batch. Raises ConfigError as `require`, without making the schedule of every batch of a ramp."""
    numbers = numbers_of_microbatches(config)
    for number in numbers[:2]:  # what serves these serves all that follow
        of_microbatches(config, number)
    return of_microbatches(config, numbers[-1])


def of_microbatches(config: schema.Config, num_microbatches: int) -> schedule.Schedule:
    """The config's schedule for a batch of so many microbatches. Raises as `schedule.make`."""
    return schedule.make(config.pipeline, config.mesh.pipe, num_microbatches, config.train.recompute == "full")


def _columns(made: program.Program) -> dict[str, np.ndarray]:
    return {name: getattr(made, name) for name in COLUMNS}
