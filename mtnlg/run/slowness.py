"""Which process of a job holds the others up."""

import statistics

FACTOR, LEAST_SECS, INTERVALS = 1.5, 0.05, 3


class Slowness:
    """Judges one interval after the other."""

    def __init__(self):
        self._counts: dict[int, int] = {}

    def judge(self, secs: dict[int, float]) -> list[int]:
        """Processes that are slow from now on, each told once until it recovers.

        secs: of each process, its own seconds a step in an interval. Slow is, INTERVALS times one after the other, more than FACTOR times
        the median of the others and LEAST_SECS more.
        """
        for process, own in secs.items():
            others = [value for other, value in secs.items() if other != process]
            is_late = bool(others) and own > FACTOR * statistics.median(others) + LEAST_SECS
            self._counts[process] = self._counts.get(process, 0) + 1 if is_late else 0
        return [process for process in secs if self._counts[process] == INTERVALS]
