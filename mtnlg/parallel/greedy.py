"""Zero bubble: every stage does the most urgent task it can, within a limit of what it holds."""

import functools

from mtnlg.core.errors import ConfigError
from mtnlg.parallel.table import Op, Schedule, Task, from_rows, looped


@functools.cache
def zero_bubble(num_stages: int, num_microbatches: int, in_flight: int | None = None, recompute: bool = False) -> Schedule:
    """B before F before W, as W alone keeps nobody waiting (Qi et al. 2024, arXiv 2401.10241).

    A stage starts no F while it has in_flight microbatches between F and W, and no B while in_flight of them wait for their W, whose
    activations lie in a ring of their own. None: P, and a third of P may wait (2 at least), which costs a few ticks and saves much
    memory. With F = B = W and M >= 8P the makespan is then within 3 % of 3M + P - 1, and 3M + P - 1 itself with in_flight = 2P - 1.
    A recomputation starts while its cotangent is made on the next stage. Raises ConfigError for in_flight below 1.
    """
    limit, waiting = (num_stages, max(-(-num_stages // 3), 2)) if in_flight is None else (in_flight, in_flight)
    if limit < 1:
        cure = f"--config.pipeline.in_flight={num_stages}"
        raise ConfigError(f"pipeline.in_flight={limit} must be at least 1", "--config.pipeline.in_flight", cure)
    # How many microbatches each op has done, per stage: every op takes them in their order.
    now = {op: [0] * num_stages for op in (Op.F, Op.R, Op.B, Op.W)}
    rows = []
    while min(now[Op.W]) < num_microbatches:
        before = {op: list(counts) for op, counts in now.items()}
        row: list[Task | None] = [None] * num_stages
        for stage in reversed(range(num_stages)):  # so that a stage sees which cotangent is made in this tick
            op = _most_urgent(stage, before, now[Op.B], num_microbatches, limit, waiting, recompute)
            if op is not None:
                row[stage] = Task(op, now[op][stage], 0)
                now[op][stage] += 1
        rows.append(row)
    return from_rows(rows, looped(num_stages))


def _most_urgent(stage: int, done: dict, made: list[int], num_microbatches: int, limit: int, waiting: int, recompute: bool) -> Op | None:
    """done[op][stage]: how many before this tick; made[stage]: how many B, with those of this tick on later stages."""
    forward, again, backward, weights = (done[op][stage] for op in (Op.F, Op.R, Op.B, Op.W))
    is_last = stage == len(made) - 1
    if backward - weights >= waiting:
        return Op.W
    if (again if recompute else forward) > backward and (is_last or done[Op.B][stage + 1] > backward):
        return Op.B
    if recompute and forward > again == backward and (is_last or made[stage + 1] > backward):
        return Op.R
    has_input = stage == 0 or done[Op.F][stage - 1] > forward
    if forward < num_microbatches and has_input and forward - weights < limit:
        return Op.F
    return Op.W if weights < backward else None
