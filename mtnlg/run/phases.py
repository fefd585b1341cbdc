"""What a run is at: at every moment one phase. Who watches over it and who counts its time read the same clock."""

import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

PHASES = {
    "init": "from the start to the first step: data, devices, restoring",
    "compile": "the first step, which waits for the compiler",
    "data": "waiting for the next batch",
    "step": "training",
    "evaluate": "held-out loss and samples",
    "save": "waiting for a checkpoint",
}


class Phases:
    """The phase now, since when, and how many seconds each has taken; it begins in `init`. Other threads may look."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.now, self.since = "init", clock()
        self.step = 0  # the last one that was begun
        self.waits: collections.deque[float] = collections.deque(maxlen=100)
        self.turns: collections.deque[float] = collections.deque(maxlen=100)
        self._secs = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """In the `with` block it is `phase`, and then again what it was before."""
        before = self.now
        self.turn(phase)
        try:
            yield
        finally:
            self.turn(before)

    def turn(self, phase: str) -> None:
        """From now on it is `phase`."""
        now = self._clock()
        self._secs[self.now] += now - self.since
        self.now, self.since = phase, now

    def waiting(self, items: Iterable, phase: str) -> Iterator:
        """The same items; while the next one is awaited it is `phase`. Of the last items, `waits` has
        the seconds that each was awaited, and `turns` those from having it to asking for the next."""
        items = iter(items)
        while True:
            begin = self._clock()
            with self.within(phase):
                item = next(items, None)
            self.waits.append(self._clock() - begin)
            if item is None:
                return
            begin = self._clock()
            yield item
            self.turns.append(self._clock() - begin)

    def taken(self) -> dict[str, float]:
        """Seconds in each phase since this was last asked; phases that took none are left out."""
        self.turn(self.now)
        taken, self._secs = self._secs, dict.fromkeys(PHASES, 0.0)
        return {phase: secs for phase, secs in taken.items() if secs}
