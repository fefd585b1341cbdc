"""A blend whose weights change on the way: each source goes on where it was, and what was drawn stays as it was."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtnlg.core.errors import ConfigError, DataError
from mtnlg.data.blend import Blend
from mtnlg.data.skips import Skips


class Edit(NamedTuple):
    """From draw number `first` on the sources have these weights."""

    first: int
    weights: tuple[float, ...]


class EditedBlend:
    """Blends in turn, as the edits say, without the draws that are skipped; the first edit begins at draw 0.

    A sample hangs on its number and the edits and skips before it alone. Raises what `Blend` raises.
    """

    def __init__(self, edits: Sequence[Edit], period: int = 1 << 14, skips: Skips | None = None):
        self.edits, self.skips = tuple(edits), skips or Skips()
        self._firsts = np.array([edit.first for edit in self.edits], np.int64)
        self._blends = [Blend(edit.weights, period) for edit in self.edits]
        before = [np.zeros(len(self.edits[0].weights), np.int64)]
        for blend, length in zip(self._blends, np.diff(self._firsts).tolist(), strict=False):
            before.append(before[-1] + blend.drawn(length))
        self._before = np.stack(before)

    def locate(self, sample_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Blend.locate`: int64 [B] sample numbers to (source int64 [B], number of the sample within its source int64 [B])."""
        numbers = self.skips.draws(sample_numbers)
        turns = self._turns(numbers)
        source, index = np.empty_like(numbers), np.empty_like(numbers)
        for turn in np.unique(turns):
            here = turns == turn
            source[here], index[here] = self._blends[turn].locate(numbers[here] - self._firsts[turn])
        return source, index + self._before[turns, source]

    def drawn(self, num_samples: int) -> np.ndarray:
        """int64 [sources]: how many of the first num_samples samples come from each source."""
        end, passed = self.skips.passed(num_samples)
        return self._drawn(end) - sum(self._drawn(one.end) - self._drawn(one.first) for one in passed)

    def _drawn(self, num_draws: int) -> np.ndarray:
        turn = self._turns(num_draws)
        return self._before[turn] + self._blends[turn].drawn(num_draws - int(self._firsts[turn]))

    def _turns(self, numbers):
        return np.searchsorted(self._firsts, numbers, side="right") - 1


def go_on(edits: Sequence[Edit], first: int, weights: Sequence[float], order: str) -> tuple[Edit, ...]:
    """The edits of a run that goes on at draw `first`, after draws under `edits`, with these weights.

    Raises ConfigError where the order of samples is Megatron's: it shuffles all the draws of a run beforehand, and would begin again.
    """
    kept = tuple(edit for edit in edits if edit.first < first)
    if kept and np.array_equal(Blend(kept[-1].weights).counts, Blend(weights).counts):
        return kept
    if kept and order == "megatron":
        cure = (
            f"--config.data.weights={','.join(map(str, kept[-1].weights))}; in a new run, --config.data.order=feistel lets weights change"
        )
        raise ConfigError(f"the weights have changed at sample {first}, and data.order=megatron cannot go on", "data.weights", cure)
    return (*kept, Edit(first if kept else 0, tuple(weights)))


def to_json(edits: Sequence[Edit], names: Sequence[str]) -> list[dict]:
    """[{sample, weights {name of a source: weight}}], as a checkpoint keeps them."""
    return [{"sample": edit.first, "weights": dict(zip(names, edit.weights, strict=True))} for edit in edits]


def from_json(recorded: list[dict], names: Sequence[str], where: str) -> tuple[Edit, ...]:
    """The edits that `to_json` wrote. Raises DataError when they are of other sources than `names`: draws are counted by source."""
    known = list(recorded[0]["weights"])
    if known != list(names):
        cure = f"--config.data.source with the sources of before, or a new --workdir with --config.init.from={where}"
        raise DataError(f"the checkpoint has drawn from {', '.join(known)}, the config names {', '.join(names)}", where, cure)
    return tuple(Edit(entry["sample"], tuple(entry["weights"].values())) for entry in recorded)
