"""How the time of some work grows with the length of what it works on."""

import time
from collections.abc import Callable

TIMES_LONGER, AT_MOST = 16, 64  # of linear work 16 times as long takes 16 times as much, of quadratic work 256 times
_RUNS = 3
_FLOOR_SECS = 0.002  # below which noise is more than the work


def require_linear(work: Callable, of_length: Callable[[int], object], length: int) -> None:
    """work: of what `of_length` gives. length: of the shorter one; quadratic work must take milliseconds over it to be noticed."""
    short, long = (_seconds(work, of_length(size)) for size in (length, TIMES_LONGER * length))
    assert long < AT_MOST * max(short, _FLOOR_SECS), f"{short:.4f} s, and {long:.4f} s for {TIMES_LONGER} times the length"


def _seconds(work: Callable, given) -> float:
    """Of the processor, whatever else is running: the best of several runs, of one where it takes long anyway."""
    best = float("inf")
    for _ in range(_RUNS):
        start = time.process_time()
        work(given)
        best = min(best, time.process_time() - start)
        if best > 1:
            break
    return best


def repeated(unit: str) -> Callable[[int], str]:
    return lambda length: unit * (length // len(unit))
