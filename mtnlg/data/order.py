"""The order of training windows as arithmetic: no index is stored, any sample is found from its number alone."""

import numpy as np

from mtnlg.core.errors import DataError

_ROUNDS = 6


def splitmix64(x: np.ndarray) -> np.ndarray:
    """A bijective scrambling of uint64 (Steele, Lea and Flood 2014, the SplitMix64 finaliser)."""
    return mixed(x + np.uint64(0x9E3779B97F4A7C15))


def mixed(x: np.ndarray) -> np.ndarray:
    """So that every bit of uint64 depends on all: the finaliser of SplitMix64 without its increment; 0 stays 0."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive(*parts: int) -> int:
    """A 64-bit key of its own for every sequence of integers, such as (seed, store) or (seed, epoch, purpose)."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state ^ np.uint64(part % 2**64))
    return int(state[0])


class Feistel:
    """A keyed bijection of [0, size).

    A balanced Feistel network permutes the next power of four; what falls outside [0, size) is sent through again until it
    falls inside ("cycle walking", Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 3).
    """

    def __init__(self, size: int, key: int):
        half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._size, self._half, self._mask = np.uint64(size), np.uint64(half), np.uint64(2**half - 1)
        self._round_keys = [np.uint64(derive(key, i)) for i in range(_ROUNDS)]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """int64 [...] in [0, size) to int64 [...] in [0, size), one to one."""
        x = self._permute(np.asarray(index).astype(np.uint64))
        while (outside := x >= self._size).any():
            x = np.where(outside, self._permute(x), x)
        return x.astype(np.int64)

    def _permute(self, x):
        left, right = x >> self._half, x & self._mask
        for round_key in self._round_keys:
            left, right = right, left ^ (splitmix64(right ^ round_key) & self._mask)
        return (left << self._half) | right


def require_window(num_tokens: int, seq_len: int, name: str) -> None:
    """Raises DataError unless the stream `name` holds a window of seq_len + 1 tokens."""
    if num_tokens < seq_len + 1:
        cure = f"--config.model.seq_len={num_tokens - 1} or less, or more text" if num_tokens > 1 else "more text"
        raise DataError(f"{num_tokens} tokens are less than one window of {seq_len + 1}", name, cure)


class WindowOrder:
    """Which window of seq_len + 1 tokens is sample n of a flat stream; neighbouring windows share one token.

    Sample n belongs to epoch n // num_windows. Every epoch visits each of its windows once, in a permutation of its own, and lays
    them from an offset of its own, so that their borders move.

    Raises DataError when the stream, called `name`, is shorter than one window.
    """

    def __init__(self, num_tokens: int, seq_len: int, seed: int, *, name: str = "the stream"):
        require_window(num_tokens, seq_len, name)
        self._seq_len, self._seed = seq_len, seed
        self.num_windows = max(1, (num_tokens - 1) // seq_len - 1)
        self._num_phases = min(seq_len, num_tokens - self.num_windows * seq_len)

    def starts(self, sample_numbers: np.ndarray) -> np.ndarray:
        """int64 [B] sample numbers to int64 [B], the first token of each window."""
        epochs, places = np.divmod(np.asarray(sample_numbers, np.int64), self.num_windows)
        starts = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            permutation = Feistel(self.num_windows, derive(self._seed, int(epoch), 0))
            phase = derive(self._seed, int(epoch), 1) % self._num_phases
            starts[here] = phase + permutation(places[here]) * self._seq_len
        return starts

    def spans(self, sample_numbers: np.ndarray) -> list[list[tuple[int, int]]]:
        """For each sample the (start, count) pieces of the stream that make it up: here one, of seq_len + 1 tokens."""
        return [[(start, self._seq_len + 1)] for start in self.starts(sample_numbers).tolist()]
