"""What a schedule is worth: the rules it breaks, how long it lasts, how long its stages stand idle and how much they hold.

`costs` is float [P, C, len(Op)]: how long each op takes, for each stage and chunk. Messages take no time.
"""

import itertools
from collections import Counter

import numpy as np

from mtnlg.parallel.table import Op, Schedule, needed


def problems(schedule: Schedule, num_microbatches: int, recompute: bool) -> list[str]:
    """A line for each rule that is broken; none if the schedule can be run."""
    wrong = [*_misplaced(schedule.placement)] or [*_out_of_range(schedule, num_microbatches)]
    return wrong or [*_miscounted(schedule, num_microbatches, recompute), *_too_early(schedule, recompute)]


def durations(schedule: Schedule, costs: np.ndarray) -> np.ndarray:
    """float [T, P]: how long each op lasts; 0 where a stage is idle."""
    lengths = costs[np.arange(len(schedule.placement)), schedule.chunks, schedule.ops]
    return np.where(schedule.ops == Op.IDLE, 0.0, lengths)


def makespan(schedule: Schedule, costs: np.ndarray) -> float:
    """How long a step lasts in lockstep: each tick as long as its longest op."""
    return float(durations(schedule, costs).max(axis=1).sum())


def bubble(schedule: Schedule, costs: np.ndarray) -> np.ndarray:
    """float [P]: the part of the makespan in which a stage is idle."""
    return 1 - durations(schedule, costs).sum(axis=0) / makespan(schedule, costs)


def asynchronous_makespan(schedule: Schedule, costs: np.ndarray) -> float:
    """How long a step would last if each stage, in its order, did every op as soon as its inputs are there; for comparison."""
    last, recomputes, lengths = schedule.placement.size - 1, schedule.recomputes, durations(schedule, costs)
    free = np.zeros(len(schedule.placement))
    finish = {}
    for tick, stage, (op, microbatch, virtual_stage) in schedule.tasks():
        inputs = needed(op, microbatch, virtual_stage, last, recomputes)
        start = max([free[stage], *(finish[task] for task in inputs)])
        free[stage] = finish[op, microbatch, virtual_stage] = start + lengths[tick, stage]
    return float(free.max())


def in_flight(schedule: Schedule) -> np.ndarray:
    """int [P]: the most microbatches, counted once for each chunk, that a stage has between F and W, both included."""
    begun = np.cumsum(schedule.ops == Op.F, axis=0)
    ended = np.cumsum(schedule.ops == Op.W, axis=0) - (schedule.ops == Op.W)
    return (begun - ended).max(axis=0)


def idle_between(schedule: Schedule) -> np.ndarray:
    """int [P]: ticks in which a stage is idle after its first and before its last op."""
    works = schedule.ops != Op.IDLE
    first, last = works.argmax(axis=0), len(works) - 1 - works[::-1].argmax(axis=0)
    return last - first + 1 - works.sum(axis=0)


def _misplaced(placement: np.ndarray):
    num_stages, held = len(placement), placement.ravel().tolist()
    if sorted(held) != list(range(len(held))):
        yield f"the stages hold virtual stages {sorted(held)}: each of 0 to {len(held) - 1} must be held once"
        return
    for virtual_stage, (here, there) in enumerate(itertools.pairwise(_stages(placement))):
        if (there - here) % num_stages not in (0, 1, num_stages - 1):
            yield (
                f"virtual stages {virtual_stage} and {virtual_stage + 1} lie on stages {here} and {there}, "
                f"which are no neighbours in a ring of {num_stages}"
            )


def _stages(placement: np.ndarray) -> list[int]:
    """The stage of each virtual stage."""
    return (np.argsort(placement, axis=None) // placement.shape[1]).tolist()


def _out_of_range(schedule: Schedule, num_microbatches: int):
    bounds = {"op": len(Op), "microbatch": num_microbatches, "chunk": schedule.placement.shape[1]}
    for (name, bound), values in zip(bounds.items(), schedule[:3], strict=True):
        for tick, stage in np.argwhere((values < 0) | (values >= bound)).tolist():
            yield f"tick {tick}, stage {stage}: {name} {values[tick, stage]} is not in 0 to {bound - 1}"


def _miscounted(schedule: Schedule, num_microbatches: int, recompute: bool):
    times = Counter(task for _, _, task in schedule.tasks())
    for op in (Op.F, Op.R, Op.B, Op.W):
        for microbatch in range(num_microbatches):
            for virtual_stage, stage in enumerate(_stages(schedule.placement)):
                count = times[op, microbatch, virtual_stage]
                if count == 0 and (op != Op.R or recompute):
                    yield f"stage {stage}: {_name(op, microbatch, virtual_stage)} is missing"
    met = Counter()
    for tick, stage, task in schedule.tasks():
        met[task] += 1
        if met[task] == 2:
            yield f"tick {tick}, stage {stage}: {_name(*task)} is done a second time"
        if task[0] == Op.R and not recompute:
            yield f"tick {tick}, stage {stage}: {_name(*task)}, and activations are kept: no R is needed"


def _too_early(schedule: Schedule, recompute: bool):
    last, first_tick = schedule.placement.size - 1, {}
    for tick, _, task in schedule.tasks():
        first_tick.setdefault(task, tick)
    for tick, stage, task in schedule.tasks():
        for other in needed(*task, last, recompute):
            if first_tick.get(other, -1) >= tick:  # one that is missing has its own line
                yield f"tick {tick}, stage {stage}: {_name(*task)} needs {_name(*other)}, which is done in tick {first_tick[other]}"


def _name(op: Op, microbatch: int, virtual_stage: int) -> str:
    return f"{op.name} of microbatch {microbatch} on virtual stage {virtual_stage}"
