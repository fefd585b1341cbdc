"""What a pipeline schedule is: a table that says which stage does what in which tick.

Stages work in lockstep: in each tick every stage does at most one operation, then neighbours exchange what they made. The model is cut
into P x C virtual stages, in its order; `placement[stage, chunk]` says which of them a stage holds as which of its C chunks.
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Op(enum.IntEnum):
    """What a stage does in a tick, for one microbatch and one of its chunks."""

    IDLE = 0
    F = 1  # forward
    R = 2  # the forward again, before B, when activations are not kept (train.recompute=full)
    B = 3  # backward to the chunk's input, and to its biases and norms
    W = 4  # backward to the chunk's kernels


class Schedule(NamedTuple):
    """A table: int32 [T, P] each. Where a stage is idle, microbatch and chunk are 0."""

    ops: np.ndarray
    microbatches: np.ndarray
    chunks: np.ndarray
    placement: np.ndarray  # [P, C] virtual stage

    @property
    def recomputes(self) -> bool:
        return bool((self.ops == Op.R).any())

    @property
    def virtual_stages(self) -> np.ndarray:
        """int32 [T, P], 0 where a stage is idle."""
        held = np.take_along_axis(self.placement.T, self.chunks, axis=0)
        return np.where(self.ops == Op.IDLE, 0, held).astype(np.int32)

    def tasks(self) -> Iterator[tuple[int, int, tuple[Op, int, int]]]:
        """(tick, stage, (op, microbatch, virtual stage)) of all that is done, in the order of ticks."""
        table = np.stack([self.ops, self.microbatches, self.virtual_stages], axis=2).tolist()
        for tick, stage in np.argwhere(self.ops != Op.IDLE).tolist():
            op, microbatch, virtual_stage = table[tick][stage]
            yield tick, stage, (Op(op), microbatch, virtual_stage)


class Task(NamedTuple):
    """One operation for one microbatch on one chunk of a stage."""

    op: Op
    microbatch: int
    chunk: int


def from_rows(rows: Sequence[Sequence[Task | None]], placement: np.ndarray) -> Schedule:
    """The table of T rows of P tasks; None is idle."""
    idle = Task(Op.IDLE, 0, 0)
    table = np.array([[task or idle for task in row] for row in rows], np.int32).reshape(len(rows), len(placement), 3)
    table.setflags(write=False)  # tables are shared by all who ask for the same numbers
    return Schedule(table[..., 0], table[..., 1], table[..., 2], placement)


def needed(op: int, microbatch: int, virtual_stage: int, last: int, recomputes: bool) -> list[tuple[Op, int, int]]:
    """What must be done in an earlier tick, as (op, microbatch, virtual stage); `last` is the model's last virtual stage."""
    same = (microbatch, virtual_stage)
    if op == Op.F:
        return [(Op.F, microbatch, virtual_stage - 1)] if virtual_stage else []
    if op == Op.R:
        return [(Op.F, *same)]
    if op == Op.W:
        return [(Op.B, *same)]
    return [(Op.R if recomputes else Op.F, *same)] + ([(Op.B, microbatch, virtual_stage + 1)] if virtual_stage < last else [])


def looped(num_stages: int, num_chunks: int = 1) -> np.ndarray:
    """[P, C]: the model goes around the stages C times."""
    return np.arange(num_stages * num_chunks, dtype=np.int32).reshape(num_chunks, num_stages).T


def folded(num_stages: int) -> np.ndarray:
    """[P, 2]: the model goes down the stages and comes back, a V."""
    down = np.arange(num_stages, dtype=np.int32)
    return np.stack([down, 2 * num_stages - 1 - down], axis=1)
