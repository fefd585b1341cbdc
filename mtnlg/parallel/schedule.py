"""Pipeline schedules: which stage does what in which tick. A schedule is a table, made by a pure function of a few numbers.

Stages work in lockstep: in each tick every stage does at most one operation, then neighbours exchange what they made. The model is cut
into P x C virtual stages, in its order; `placement[stage, chunk]` says which of them a stage holds as which of its C chunks.
"""

import enum
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
