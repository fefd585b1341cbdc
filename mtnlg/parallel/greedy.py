"""Zero bubble: every stage does the most urgent task it can, within a limit of what it holds."""

import functools

from mtnlg.core.errors import ConfigError
from mtnlg.parallel.table import Op, Schedule, Task, from_rows, looped


@functools.cache
def zero_bubble(num_stages: int, num_microbatches: int, in_flight: int | None = None, recompute: bool = False) -> Schedule:
    """B before F before W, as W alone keeps nobody waiting (Qi et al. 2024, arXiv 2401.10241).

    A stage starts no F while it has in_flight (None: P) microbatches between F and W. With F = B = W and M >= 8P the makespan is within
    3 % of 3M + P - 1, and 3M + P - 1 itself with in_flight = 2P - 1. A recomputation starts while its cotangent is made on the next
    stage; up to in_flight microbatches wait for their W, which fills the ticks at the end. Raises ConfigError for in_flight below 1.
    """
    limit = num_stages if in_flight is None else in_flight
    if limit < 1:
        cure = f"--config.pipeline.in_flight={num_stages}"
        raise ConfigError(f"pipeline.in_flight={limit} must be at least 1", "--config.pipeline.in_flight", cure)
