"""Far more numbers than fit into memory, parted on disk so that equal ones come together."""

import os
import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg.core import files

_PART_BYTES = 8_000_000
_MAX_PARTS = 1 << 16


class Spill:
    """Entries of `dtype` in files of a new folder; those of a part are given back together. num_entries: how many are awaited."""

    def __init__(self, path: pathlib.Path, dtype, num_entries: int):
        self._path, self._dtype = path, np.dtype(dtype)
        self.num_bits = min(-(-num_entries * self._dtype.itemsize // _PART_BYTES), _MAX_PARTS - 1).bit_length()
        path.mkdir()

    def add(self, hashes: np.ndarray, entries: np.ndarray) -> None:
        """hashes: uint64, whose first `num_bits` say to which part each entry goes."""
        parts = (hashes >> np.uint64(1) >> np.uint64(63 - self.num_bits)).astype(np.uint16)  # two steps: nothing is shifted by 64
        entries = entries[np.argsort(parts, kind="stable")]
        ends = np.cumsum(np.bincount(parts))
        for part in np.unique(parts):
            self._append(self._path / str(part), entries[ends[part - 1] if part else 0 : ends[part]])

    def _append(self, path: pathlib.Path, entries: np.ndarray) -> None:
        with files.writing(path), open(path, "ab") as file:
            file.write(entries.tobytes())

    def parts(self) -> Iterator[np.ndarray]:
        """The entries of each part, in the order in which they were added. What was given is gone from the disk."""
        for part in range(1 << self.num_bits):
            path = self._path / str(part)
            if path.exists():
                entries = np.fromfile(path, self._dtype)
                os.unlink(path)
                yield entries
        self._path.rmdir()


class SpilledSet(Spill):
    """Each entry once, sorted. On the disk are at most twice as many as differ, or _PART_BYTES of each part."""

    def __init__(self, path: pathlib.Path, dtype, num_entries: int):
        super().__init__(path, dtype, num_entries)
        self._most: dict[pathlib.Path, int] = {}  # bytes at which doubles are dropped, of parts that have been so large

    def _append(self, path: pathlib.Path, entries: np.ndarray) -> None:
        super()._append(path, entries)
        if path.stat().st_size > self._most.get(path, _PART_BYTES):
            left = np.unique(np.fromfile(path, self._dtype))
            self._most[path] = max(2 * left.nbytes, _PART_BYTES)
            with files.writing(path):
                left.tofile(path)

    def parts(self) -> Iterator[np.ndarray]:
        yield from map(np.unique, super().parts())
