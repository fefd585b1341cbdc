"""The schedule of a step as arrays: an input of the compiled step, so that one program serves every batch of a ramp."""

import functools
from typing import NamedTuple

import numpy as np
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.parallel import program, schedule

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
    size, longest = sizes(config), max(len(_schedule(config, number).ops) for number in num_microbatches_of(config))
    made = program.compile(_schedule(config, num_microbatches), size)
    columns = {name: getattr(made, name) for name in COLUMNS}
    padded = {name: np.pad(column, ((0, longest - len(column)), (0, 0))) for name, column in columns.items()}
    return padded | {"num_ticks": np.int32(len(made.op))}


@functools.cache
def sizes(config: schema.Config) -> Sizes:
    """As many slots as the batch that needs most. Raises ConfigError for a batch that the schedule cannot serve."""
    each = [program.compile(_schedule(config, number)).sizes for number in num_microbatches_of(config)]
    return Sizes(*(max(ring) for ring in zip(*each, strict=True)))


def num_microbatches_of(config: schema.Config) -> range:
    """The numbers of microbatches that the steps of a run have, along the ramp."""
    train, rows = config.train, config.microbatch_rows
    first = train.ramp_start_size or train.batch_size
    return range(first // rows, train.batch_size // rows + 1, max(train.ramp_increment // rows, 1))


def _schedule(config: schema.Config, num_microbatches: int) -> schedule.Schedule:
    return schedule.make(config.pipeline, config.mesh.pipe, num_microbatches, config.train.recompute == "full")
