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
            with files.writing(self._path), open(self._path / str(part), "ab") as file:
                file.write(entries[ends[part - 1] if part else 0 : ends[part]].tobytes())

    def parts(self) -> Iterator[np.ndarray]:
        """The entries of each part, in the order in which they were added. What was given is gone from the disk."""
        for part in range(1 << self.num_bits):
            path = self._path / str(part)
            if path.exists():
                entries = np.fromfile(path, self._dtype)
                os.unlink(path)
                yield entries
        self._path.rmdir()
