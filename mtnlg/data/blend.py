"""Which source each sample comes from."""

import heapq

import numpy as np

from mtnlg.core.errors import DataError


class Blend:
    """A fixed pattern of `period` draws, repeated for ever.

    The draws of a period are apportioned to the sources by the largest remainder (Hamilton). They are laid out so that after t
    draws a source that has n of the period's draws has been drawn less than one draw more or less than t * n / period: the k-th
    draw of a source is due in [floor(k * period / n), ceil((k + 1) * period / n)), and the earliest deadline goes first, which
    meets every deadline (Liu and Layland 1973; Tijdeman 1980 has the bound).

    counts: int64 [sources], draws of each source in a period.
    Raises DataError on a weight that is not positive, or that is less than a draw in a period.
    """

    def __init__(self, weights, period: int = 1 << 14):
        shares = np.asarray(weights, np.float64)
        if not len(shares) or not np.isfinite(shares).all() or (shares <= 0).any():
            raise DataError(f"weights {tuple(weights)} are not all positive", "data.weights", "leaving out the sources of weight 0")
        ideal = shares / shares.sum() * period
        self.counts = np.floor(ideal).astype(np.int64)
        self.counts[np.argsort(self.counts - ideal, kind="stable")[: period - self.counts.sum()]] += 1
        if not self.counts.all():
            source = int(np.argmin(self.counts))
            raise DataError(
                f"weight {weights[source]} of source {source} is less than one draw in {period}",
                "data.weights",
                "a larger weight, or leaving that source out",
            )
        self._period = period
        self._source = _pattern(self.counts.tolist(), period)
        self._rank = np.empty(period, np.int64)
        for source, count in enumerate(self.counts):
            self._rank[self._source == source] = np.arange(count)

    def locate(self, sample_numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [B] sample numbers to (source int64 [B], number of the sample within its source int64 [B])."""
        periods, places = np.divmod(np.asarray(sample_numbers, np.int64), self._period)
        source = self._source[places]
        return source, periods * self.counts[source] + self._rank[places]

    def drawn(self, num_samples: int) -> np.ndarray:
        """int64 [sources]: how many of the first num_samples samples come from each source."""
        periods, rest = divmod(num_samples, self._period)
        return periods * self.counts + np.bincount(self._source[:rest], minlength=len(self.counts))


def _pattern(counts: list[int], period: int) -> np.ndarray:
    """int64 [period]: the source of each draw, by earliest deadline among the draws already due."""
    releases = [(0, source, 0) for source in range(len(counts))]
    due, pattern = [], np.empty(period, np.int64)
    for place in range(period):
        while releases and releases[0][0] <= place:
            _, source, k = heapq.heappop(releases)
            heapq.heappush(due, (-(-(k + 1) * period // counts[source]), source, k))
        _, source, k = heapq.heappop(due)
        pattern[place] = source
        if k + 1 < counts[source]:
            heapq.heappush(releases, ((k + 1) * period // counts[source], source, k + 1))
    return pattern
