"""Schedules from the literature: a fixed order of work for each stage, each task in the first tick in which its inputs are there.

All sums of gradients run in the order of the microbatches, whatever the schedule.
"""

import functools
from collections.abc import Sequence

import numpy as np

from mtnlg.core.errors import ConfigError
from mtnlg.parallel.table import Op, Schedule, Task, folded, from_rows, looped, needed


@functools.cache
def gpipe(num_stages: int, num_microbatches: int, recompute: bool = False) -> Schedule:
    """All forwards, then all backwards (Huang et al. 2019, arXiv 1811.06965). Every microbatch is in flight at once."""
    forwards = [Task(Op.F, m, 0) for m in range(num_microbatches)]
    backwards = [task for m in range(num_microbatches) for task in _backward(m, 0, recompute)]
    return _as_soon_as_possible([forwards + backwards] * num_stages, looped(num_stages))


@functools.cache
def one_f_one_b(num_stages: int, num_microbatches: int, recompute: bool = False) -> Schedule:
    """PipeDream-flush (Narayanan et al. 2021, arXiv 2006.09503) with the backward split: stage p has at most P - p microbatches in flight.

    With F = B = W the makespan is 3M + 2(P - 1).
    """
    forwards = backwards = [(m, 0) for m in range(num_microbatches)]
    orders = [_alternating(forwards, backwards, num_stages - 1 - stage, recompute) for stage in range(num_stages)]
    return _as_soon_as_possible(orders, looped(num_stages))


@functools.cache
def interleaved(num_stages: int, num_microbatches: int, num_chunks: int, recompute: bool = False) -> Schedule:
    """Interleaved 1F1B (Narayanan et al. 2021, arXiv 2104.04473): P microbatches pass one chunk, then the next, around the stages.

    With F = B = W the makespan is at most 3(M C + P - 1) chunk operations. Stage p has at most 2(P - 1 - p) + (C - 1) P + 1 chunks of
    microbatches in flight. Raises ConfigError when they are no multiple of the stages, or for no chunk.
    """
    if num_chunks < 1:
        raise ConfigError(f"pipeline.chunks={num_chunks} must be at least 1", "--config.pipeline.chunks", "--config.pipeline.chunks=2")
    if num_microbatches % num_stages:
        what = f"pipeline.schedule=interleaved needs a multiple of mesh.pipe={num_stages} microbatches, and there are {num_microbatches}"
        fitting = -(-num_microbatches // num_stages) * num_stages
        cure = f"a batch of {fitting} microbatches, or --config.pipeline.schedule=1f1b"
        raise ConfigError(what, "--config.train.batch_size", cure)
    groups = [range(first, first + num_stages) for first in range(0, num_microbatches, num_stages)]
    forwards = [(m, chunk) for group in groups for chunk in range(num_chunks) for m in group]
    backwards = [(m, chunk) for group in groups for chunk in reversed(range(num_chunks)) for m in group]
    warm_ups = [2 * (num_stages - 1 - stage) + (num_chunks - 1) * num_stages for stage in range(num_stages)]
    orders = [_alternating(forwards, backwards, warm_up, recompute) for warm_up in warm_ups]
    return _as_soon_as_possible(orders, looped(num_stages, num_chunks))


@functools.cache
def zb_v(num_stages: int, num_microbatches: int, recompute: bool = False) -> Schedule:
    """ZB-V (Qi et al. 2024, arXiv 2401.10241, section 6): two chunks a stage, the model goes down the stages and comes back.

    With F = B = W and at least 2P - 1 microbatches no stage is idle between its first and its last task. At most 2P chunks, as much as
    P whole stages, of microbatches are in flight.
    """
    # Fewer microbatches are the same order with the others left out.
    whole = max(num_microbatches, 2 * num_stages - 1)
    orders = [_v_order(stage, num_stages, whole, recompute) for stage in range(num_stages)]
    return _as_soon_as_possible([[t for t in order if t.microbatch < num_microbatches] for order in orders], folded(num_stages))


def forward_only(placement: np.ndarray, num_microbatches: int) -> Schedule:
    """Only forwards: all microbatches pass one chunk, then the next."""
    order = [Task(Op.F, m, chunk) for chunk in range(placement.shape[1]) for m in range(num_microbatches)]
    return _as_soon_as_possible([order] * len(placement), placement)


def _backward(microbatch: int, chunk: int, recompute: bool) -> list[Task]:
    ops = (Op.R, Op.B, Op.W) if recompute else (Op.B, Op.W)
    return [Task(op, microbatch, chunk) for op in ops]


def _alternating(forwards: Sequence, backwards: Sequence, warm_up: int, recompute: bool) -> list[Task]:
    """`warm_up` forwards, then one forward and one backward by turns; forwards and backwards are (microbatch, chunk) in order."""
    order = [Task(Op.F, *which) for which in forwards[:warm_up]]
    for forward, backward in zip([*forwards[warm_up:], *[None] * warm_up], backwards, strict=False):
        if forward:
            order.append(Task(Op.F, *forward))
        order += _backward(*backward, recompute)
    return order


def _v_order(stage: int, num_stages: int, num_microbatches: int, recompute: bool) -> list[Task]:
    """The order of one stage. At first chunk 0 runs ahead, at last W waits until the chain of B no longer needs the stage."""
    order: list[Task] = []
    count = dict.fromkeys(((op, chunk) for op in (Op.F, Op.B, Op.W) for chunk in (0, 1)), 0)

    def do(op: Op, chunk: int) -> None:
        microbatch = count[op, chunk]
        if op == Op.B and recompute:
            order.append(Task(Op.R, microbatch, chunk))
        order.append(Task(op, microbatch, chunk))
        count[op, chunk] += 1

    def do_all(times: int, *tasks: tuple[Op, int]) -> None:
        for _ in range(times):
            for task in tasks:
                do(*task)

    above, below = stage, num_stages - stage
    do_all(2 * below - 1, (Op.F, 0))
    do_all(above, (Op.F, 1), (Op.F, 0))
    do_all(below, (Op.F, 1), (Op.B, 1), (Op.W, 1))
    while count[Op.F, 1] < num_microbatches:
        if count[Op.F, 0] < num_microbatches:
            do(Op.F, 0)
        do_all(1, (Op.B, 0), (Op.W, 0), (Op.F, 1), (Op.B, 1), (Op.W, 1))
    do_all(above, (Op.B, 0), (Op.B, 1))
    do_all(below, (Op.B, 0), (Op.W, 0))
    for chunk in (1, 0):
        do_all(num_microbatches - count[Op.W, chunk], (Op.W, chunk))
    return order


def _as_soon_as_possible(orders: Sequence[Sequence[Task]], placement: np.ndarray) -> Schedule:
    """The table in which every stage keeps its order and does each task in the first tick that has its inputs."""
    last = placement.size - 1
    recomputes = any(task.op == Op.R for order in orders for task in order)
    virtual = placement.tolist()
    position, done, rows = [0] * len(orders), set(), []
    while any(at < len(order) for at, order in zip(position, orders, strict=True)):
        row, made = [], []
        for stage, (at, order) in enumerate(zip(position, orders, strict=True)):
            task = order[at] if at < len(order) else None
            if task is not None:
                op, microbatch, virtual_stage = task.op, task.microbatch, virtual[stage][task.chunk]
                if done.issuperset(needed(op, microbatch, virtual_stage, last, recomputes)):
                    made.append((op, microbatch, virtual_stage))
                    position[stage] += 1
                else:
                    task = None
            row.append(task)
        assert made, f"the stages wait for one another in tick {len(rows)}"
        done.update(made)
        rows.append(row)
    return from_rows(rows, placement)
