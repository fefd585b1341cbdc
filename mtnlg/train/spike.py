"""Spikes of the loss: steps that stand out against those before them."""

import collections
import copy
import statistics
from collections.abc import Mapping

from mtnlg.core import schema

_FLOOR = 0.01  # of the median: the least deviation, so that a loss that hardly moves gives no alarm


class Spikes:
    """Sees the loss of every step, in order. The same losses give the same answers, in every process and after every restart."""

    def __init__(self, guard: schema.Guard):
        self._guard = guard
        self._calm: collections.deque[float] = collections.deque(maxlen=guard.spike_window)
        self._steps: list[int] = []  # those that stand out, up to the last one seen
        self.found: tuple[int, ...] = ()  # of the last spike, the guard.spike_steps steps, one after the other, by which it was known

    def see(self, step: int, loss: float) -> bool:
        """Whether this step stands out: its loss is guard.spike_deviations median absolute deviations above the median of calm ones.

        Nothing does before half of the window is there. What stands out is not calm, and does not count for later steps.
        """
        if self._guard.spike_deviations is not None and 2 * len(self._calm) >= self._guard.spike_window:
            median = statistics.median(self._calm)
            deviation = max(statistics.median(abs(one - median) for one in self._calm), _FLOOR * abs(median))
            if loss > median + self._guard.spike_deviations * deviation:
                self._steps.append(step)
                if len(self._steps) == self._guard.spike_steps:
                    self.found = tuple(self._steps)
                return True
        self._calm.append(loss)
        self._steps = []
        return False

    def after(self, step: int, loss: float) -> "Spikes":
        """What this one will be when it has seen this step too."""
        later = copy.deepcopy(self)
        later.see(step, loss)
        return later

    def to_json(self) -> dict:
        """All it knows, as a checkpoint keeps it; a spike that is found only if it is to be gone back from."""
        return {"calm": list(self._calm), "steps": list(self._steps), "found": list(self.found if self._guard.rollback_steps else ())}

    def restore(self, recorded: Mapping) -> None:
        """Becomes what `to_json` said; of nothing, one that has seen nothing."""
        self._calm = collections.deque(recorded.get("calm", ()), maxlen=self._guard.spike_window)
        self._steps, self.found = list(recorded.get("steps", ())), tuple(recorded.get("found", ()))
