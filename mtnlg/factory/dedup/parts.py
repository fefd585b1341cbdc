"""The parts that a pass wrote into a folder, read as one array: never more of it than is asked for."""

import bisect
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg.factory import folder


class Parts:
    """Of an ended pass, as entries of `dtype`. Raises DataError where none has ended."""

    def __init__(self, path: pathlib.Path, dtype):
        parts = folder.read(path)["parts"]
        self._dtype, self._paths = np.dtype(dtype), [path / part["name"] for part in parts]
        self._ends = np.cumsum([part["bytes"] for part in parts], dtype=np.int64).tolist()  # in bytes

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) // self._dtype.itemsize

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Entries that lie in one part."""
        begin, size = start * self._dtype.itemsize, (stop - start) * self._dtype.itemsize
        part = bisect.bisect_right(self._ends, begin)
        if not size:
            return np.empty(0, self._dtype)
        with open(self._paths[part], "rb", buffering=0) as file:  # none stays open: there may be thousands
            content = os.pread(file.fileno(), size, begin - (self._ends[part - 1] if part else 0))
        return np.frombuffer(content, self._dtype)

    def chunks(self, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """(place of the first, at most so many entries), up to the last."""
        start = 0
        for end in (end // self._dtype.itemsize for end in self._ends):
            while start < end:
                stop = min(start + most, end)
                yield start, self.slice(start, stop)
                start = stop
