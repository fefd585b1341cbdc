"""Draws of a run's order that are never trained on. A draw is what the order gives, a sample what is consumed: without skips the same."""

from collections.abc import Iterable, Sequence

import numpy as np

from mtnlg.core.errors import ConfigError
from mtnlg.core.ranges import Range, parse


class Skips:
    """Which draw is the n-th sample when these ranges, which may overlap, are left out."""

    def __init__(self, ranges: Iterable[Range] = ()):
        self.ranges = _joined(ranges)
        self._lengths = np.cumsum([0, *(one.end - one.first for one in self.ranges)])
        self._begins = np.array([one.first for one in self.ranges], np.int64) - self._lengths[:-1]  # samples before each range

    def draws(self, samples) -> np.ndarray:
        """int64 [...] numbers of samples to int64 [...] numbers of draws, which grow with them."""
        samples = np.asarray(samples, np.int64)
        return samples + self._lengths[np.searchsorted(self._begins, samples, side="right")]

    def passed(self, samples: int) -> tuple[int, tuple[Range, ...]]:
        """When so many samples are consumed: the end of their draws, and the ranges before it."""
        end = int(self.draws(samples - 1)) + 1 if samples else 0
        return end, self.before(end)

    def before(self, end: int) -> tuple[Range, ...]:
        """The ranges as far as they lie before this draw."""
        return tuple(Range(one.first, min(one.end, end)) for one in self.ranges if one.first < end)


def go_on(known: Skips, wanted: Iterable[Range], samples: int) -> Skips:
    """The skips of a run that has consumed `samples` under `known` and wants these from now on; what it has passed stays.

    Raises ConfigError for a range that begins before what is consumed and was not known then.
    """
    end, passed = known.passed(samples)
    found = Skips([*passed, *wanted])
    if found.before(end) != passed:
        late = next(one for one, clipped in zip(found.ranges, found.before(end), strict=False) if clipped not in passed)
        what = f"samples from {late.first} on cannot be left out any more: the run is at {end}"
        cure = f"--config.data.skip_ranges={end}:{max(end + 1, late.end)}, or a start from an earlier checkpoint"
        raise ConfigError(what, "data.skip_ranges", cure)
    return found


def is_overtaken(known: Skips, samples: int, left_out: Iterable[Range]) -> bool:
    """Whether a run that has consumed so many samples has read of what was to be left out, as was found afterwards."""
    end, passed = known.passed(samples)
    return Skips([*passed, *left_out]).before(end) != passed


def _joined(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same draws as ranges in order that neither overlap nor touch."""
    found: list[Range] = []
    for first, end in sorted(ranges):
        if found and first <= found[-1].end:
            found[-1] = Range(found[-1].first, max(found[-1].end, end))
        else:
            found.append(Range(first, end))
    return tuple(found)


def to_json(skips: Skips) -> list[str]:
    """As a checkpoint keeps them."""
    return list(map(str, skips.ranges))


def from_json(recorded: Sequence[str]) -> Skips:
    """What `to_json` wrote."""
    return Skips(map(parse, recorded))
