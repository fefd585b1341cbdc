"""How fast a run is."""

import contextlib
import math
import time
from collections.abc import Iterator

import numpy as np


class StepClock:
    """Tokens per second between steps, without the time spent beside them. The first step, which compiles, does not count."""

    def __init__(self):
        self._last: tuple[float, int] | None = None
        self._pause = 0.0
        self.rates: list[float] = []

    def step_done(self, tokens: int) -> None:
        """A step has ended, with so many tokens consumed since the run began."""
        now = time.perf_counter()
        if self._last is not None:
            before, tokens_before = self._last
            self.rates.append((tokens - tokens_before) / max(now - before - self._pause, 1e-9))
        self._last, self._pause = (now, tokens), 0.0

    def median_rate(self, num_steps: int | None = None) -> float:
        """Tokens per second of the median of the last steps (all: None); NaN before the second step."""
        return float(np.median(self.rates[-num_steps if num_steps else None :])) if self.rates else math.nan

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._pause += time.perf_counter() - start
