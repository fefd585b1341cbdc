"""Named arrays of another project's files, read one at a time, and what is said when they are not those of a model."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np

from mtnlg.core.errors import DataError

FLOATS = {np.dtype(name): name for name in ("float32", "float16")} | {np.dtype(ml_dtypes.bfloat16): "bfloat16"}
DTYPES = {name: dtype for dtype, name in FLOATS.items()}
MOST_LINES = 40
CHUNK_BYTES = 1 << 26


class Stored(NamedTuple):
    """What a file says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Tensors(Protocol):
    """A model's arrays by the name that its project gives them."""

    where: str

    def stored(self) -> dict[str, Stored]:
        """Every array that is there, without reading any."""

    def read(self, name: str) -> np.ndarray:
        """One array, a view of the file where that is possible, or what gives one when it is sliced. Raises DataError."""


def problems(there: dict[str, Stored], wanted: dict[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> list[str]:
    """A line for each array that is missing, that nothing asks for, that has another shape, or whose numbers a float32 cannot hold."""
    lines = [f"{name}: missing, {list(shape)} is wanted" for name, shape in wanted.items() if name not in there]
    lines += [f"{name}: nothing in this architecture is called so" for name in there if name not in wanted and name not in set(ignored)]
    for name, shape in wanted.items():
        if name not in there:
            continue
        if there[name].shape != tuple(shape):
            lines.append(f"{name}: {list(there[name].shape)}, and {list(shape)} is wanted")
        if there[name].dtype not in FLOATS:
            lines.append(f"{name}: {there[name].dtype} does not fit into float32, bfloat16 or float16 without loss")
    return lines


def refuse(lines: list[str], what: str, where: str, cure: str) -> None:
    """Raises DataError with all the lines, if there are any."""
    if lines:
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        told = "\n".join(f"  - {line}" for line in [*lines[:MOST_LINES], *more])
        raise DataError(f"{what}:\n{told}\n", where, cure)


def rows_at_once(shape: tuple[int, ...], itemsize: int) -> int:
    """Rows of an array of this shape that are no more than CHUNK_BYTES, at least one."""
    row_bytes = itemsize * int(np.prod(shape[1:], dtype=np.int64))
    return max(min(shape[0], CHUNK_BYTES // max(row_bytes, 1)), 1)
