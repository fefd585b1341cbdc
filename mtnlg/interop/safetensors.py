"""Safetensors files: `u64 length | JSON header | numbers`, alone or several with an index."""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np

from mtnlg.core.errors import DataError, MissingInput
from mtnlg.interop.tensors import Stored

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAX_HEADER_BYTES = 100_000_000
CURE = "the whole folder, copied again"
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"{kind}{bits}": np.dtype(f"{name}{bits}") for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    "BOOL": np.dtype("bool"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFolder:
    """The tensors of a folder's safetensors files. Raises MissingInput (none are there), DataError (damaged)."""

    def __init__(self, folder: str | os.PathLike):
        self.where = str(folder)
        self._places: dict[str, tuple[pathlib.Path, int, Stored]] = {}
        for path, expected in _files(pathlib.Path(folder)):
            found = _header(path)
            if expected is not None and (lost := sorted(expected - found.keys())):
                raise DataError(f"{len(lost)} tensors that the index names are not in it, {lost[0]} the first", str(path), CURE)
            for name in found if expected is None else sorted(expected):
                self._places[name] = (path, *found[name])

    def stored(self) -> dict[str, Stored]:
        return {name: stored for name, (_, _, stored) in self._places.items()}

    def read(self, name: str) -> np.ndarray:
        path, offset, (shape, dtype) = self._places[name]
        if 0 in shape:
            return np.zeros(shape, dtype)
        try:
            return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", str(path), CURE) from error


def _files(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, set[str] | None]]:
    """Each file with the names that the index expects in it; None: there is no index."""
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            others = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES)
            cure = "model.safetensors, or its index with all of its files"
            if others:
                raise DataError(f"{others[0]} is a pickle, which can run code when it is read: it is left alone", str(folder), cure)
            raise MissingInput("no safetensors file is there", str(folder), cure)
        yield folder / SINGLE, None
        return
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        by_file: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            if pathlib.PurePath(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(f"{file!r} is no safetensors file of this folder")
            by_file.setdefault(file, set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not an index of tensors: {error!r}", str(index), CURE) from None
    lost = [file for file in by_file if not (folder / file).is_file()]
    if lost:
        raise MissingInput(
            f"{len(lost)} of {len(by_file)} files that the index names are not there: {', '.join(lost[:5])}", str(index), CURE
        )
    yield from ((folder / file, by_file[file]) for file in sorted(by_file))


def _header(path: pathlib.Path) -> dict[str, tuple[int, Stored]]:
    """{name: (offset in the file, what is stored)}. The library says whether the header is sound; its numbers are then read from it."""
    import safetensors

    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        with safetensors.safe_open(path, "np") as checked:
            names = set(checked.keys())
        header.pop("__metadata__", None)
        if names != header.keys():
            raise ValueError("names that stand there twice")
        found = {}
        for name, row in header.items():
            shape, dtype = tuple(map(int, row["shape"])), DTYPES.get(row["dtype"])
            if dtype is None:
                raise ValueError(f"{name} has the unknown type {row['dtype']}")
            found[name] = (8 + length + int(row["data_offsets"][0]), Stored(shape, dtype))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise DataError(f"not a safetensors file: {error}", str(path), CURE) from None


def header(stored: dict[str, Stored]) -> bytes:
    """The bytes before the numbers, of tensors that follow one another in this order; padded to a multiple of 8 bytes."""
    rows, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in stored.items():
        begin, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        rows[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(rows, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def shards(stored: dict[str, Stored], max_bytes: int) -> list[list[str]]:
    """The names, in their order, cut so that a shard has no more than max_bytes of numbers, but one tensor at least."""
    made: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in stored.items():
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if made[-1] and size + num_bytes > max_bytes:
            made.append([])
            size = 0
        made[-1].append(name)
        size += num_bytes
    return made


def shard_names(count: int) -> list[str]:
    """What the files are called."""
    return [SINGLE] if count == 1 else [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def index(stored: dict[str, Stored], files: Iterable[tuple[str, list[str]]]) -> str:
    """The content of model.safetensors.index.json."""
    total = sum(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for shape, dtype in stored.values())
    weight_map = {name: file for file, names in files for name in names}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"
