"""How the time of some work grows with the length of what it works on."""

import gc
import time
from collections.abc import Callable

TIMES_LONGER, AT_MOST = 16, 64  # of linear work 16 times as long takes 16 times as much, of quadratic work 256 times
_TRIES = 8  # a busy machine only makes work slower: what was linear once is linear
_FLOOR_SECS = 0.002  # below which noise is more than the work


def require_linear(work: Callable, of_length: Callable[[int], object], length: int) -> None:
    """work: of what `of_length` gives. length: of the shorter one; quadratic work must take milliseconds over it to be noticed."""
    shorter, longer = of_length(length), of_length(TIMES_LONGER * length)
    short, long = min(_seconds(work, shorter) for _ in range(_TRIES)), float("inf")
    for _ in range(_TRIES):
        long = min(long, _seconds(work, longer))
        if long < AT_MOST * max(short, _FLOOR_SECS):
            return
    raise AssertionError(f"{short:.4f} s, and {long:.4f} s for {TIMES_LONGER} times the length")


def _seconds(work: Callable, given) -> float:
    """Of the processor, in this thread, without the garbage collector: beside a large heap it takes longer than the work."""
    gc.disable()
    try:
        start = time.thread_time()
        work(given)
        return time.thread_time() - start
    finally:
        gc.enable()


def repeated(unit: str) -> Callable[[int], str]:
    return lambda length: unit * (length // len(unit))
