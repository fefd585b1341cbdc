"""One optimizer step of a pipeline: when each stage does what, how long it stands idle and how much it keeps. Full batches only."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import lockstep, program, stages, timetable
from mtnlg.parallel.table import Op, Schedule
from mtnlg.plan import activations


class Bar(NamedTuple):
    """One op of a stage. Times are in forwards of one block."""

    op: Op
    microbatch: int
    chunk: int
    start: float
    length: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A step under a config's schedule. Each tick lasts as long as its longest op, as stages work in lockstep."""

    config: schema.Config
    schedule: Schedule

    @property
    def num_stages(self) -> int:
        return len(self.schedule.placement)

    @property
    def num_chunks(self) -> int:
        return self.schedule.placement.shape[1]

    @property
    def num_microbatches(self) -> int:
        return num_microbatches(self.config)

    @property
    def num_ticks(self) -> int:
        return len(self.schedule.ops)

    @functools.cached_property
    def costs(self) -> np.ndarray:
        return stages.costs(self.config)

    @functools.cached_property
    def makespan(self) -> float:
        return lockstep.makespan(self.schedule, self.costs)

    @functools.cached_property
    def ideal(self) -> float:
        """The work of the busiest stage: no order of it is shorter."""
        return float(self._lengths.sum(axis=0).max())

    @functools.cached_property
    def bubble(self) -> np.ndarray:
        """float [P]: the part of the step in which a stage is idle."""
        return lockstep.bubble(self.schedule, self.costs)

    @functools.cached_property
    def in_flight(self) -> np.ndarray:
        """int [P]: the most microbatches between F and W, once for each chunk."""
        return lockstep.in_flight(self.schedule)

    @functools.cached_property
    def program(self) -> program.Program:
        return program.compile(self.schedule)

    @functools.cached_property
    def slots(self) -> np.ndarray:
        """int [P, 3]: slots of mailbox, kept and deferred that a stage uses; every stage reserves the most that one uses."""
        made, rings = self.program, (("from_previous", "from_next", "from_self"), ("kept",), ("deferred",))
        used = []
        for fields, spare in zip(rings, made.sizes, strict=True):
            taken = np.concatenate([getattr(made, field) for field in fields])
            used.append(np.where(taken < spare, taken + 1, 0).max(axis=0))
        return np.stack(used, axis=1)

    @functools.cached_property
    def used_bytes(self) -> list[int]:
        """Of each stage's slots, on one device."""
        return [activations.slot_bytes(self.config).of(slots) for slots in self.slots.tolist()]

    @functools.cached_property
    def reserved_bytes(self) -> int:
        """Of the rings, the same on every device, with the mailbox's spare slot."""
        slot = activations.slot_bytes(self.config)
        return slot.of(self.program.sizes) + slot.mail

    @functools.cached_property
    def num_messages(self) -> int:
        """Messages of a step that another stage waits for."""
        made = self.program
        return int(sum((getattr(made, field) < made.num_mail).sum() for field in ("from_previous", "from_next")))

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return lockstep.durations(self.schedule, self.costs)

    @functools.cached_property
    def bars(self) -> list[list[Bar]]:
        """For each stage what it does, in order."""
        table, lengths = self.schedule, self._lengths
        starts = np.concatenate([[0.0], np.cumsum(lengths.max(axis=1))]).tolist()
        found: list[list[Bar]] = [[] for _ in range(self.num_stages)]
        for tick, stage, (op, microbatch, _) in table.tasks():
            found[stage].append(Bar(op, microbatch, int(table.chunks[tick, stage]), starts[tick], float(lengths[tick, stage])))
        return found


def num_microbatches(config: schema.Config) -> int:
    """M of a step with the full batch."""
    return config.train.batch_size // config.microbatch_rows


def counted(config: schema.Config) -> str:
    """`8 microbatches`."""
    number = num_microbatches(config)
    return f"{number} microbatch{'es' * (number > 1)}"


def require_stages(config: schema.Config) -> None:
    """Raises ConfigError for a config without a pipeline."""
    if config.mesh.pipe == 1:
        raise ConfigError("mesh.pipe=1 has no stages, so there is no schedule to show", "--config.mesh.pipe", "--config.mesh.pipe=4")


def of(config: schema.Config) -> Timeline:
    """The step of a config. Raises as `require_stages`, `stages.of` and `timetable.of_full_batch`."""
    require_stages(config)
    stages.of(config)
    return Timeline(config, timetable.of_full_batch(config))
