"""llama.cpp's GGUF files: what the header says, and the rows and columns that are wanted of a tensor, dequantised by the `gguf` library.

Layout (ggml's docs/gguf.md): "GGUF", version, counts, (key, type, value) for each field, (name, dims, type, offset) for each tensor,
padding, data. All little-endian. The header is read here and not by `gguf.GGUFReader`, which trusts every length that it finds.
"""

import dataclasses
import math
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np

from mtnlg.core import extras
from mtnlg.core.errors import DataError, MissingInput

MAX_HEADER_BYTES = 1 << 28
MAX_NAMES = 1 << 17  # of tensors, and of fields
MAX_ITEMS = 1 << 23  # of all arrays, as the tokens of a vocabulary, their scores and their merges
SLAB_NUMBERS = 1 << 22  # dequantised at once: the library needs the memory of several
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
CURE = "the whole .gguf file, copied again"

_SCALARS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "u1"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


class Kind(NamedTuple):
    """A type of tensor: `block_size` numbers lie in `block_bytes`. dtype: of what is read, float32 if quantised."""

    name: str
    block_size: int
    block_bytes: int
    dtype: np.dtype


_FLOAT32 = np.dtype(np.float32)
KINDS = {
    0: Kind("F32", 1, 4, _FLOAT32),
    1: Kind("F16", 1, 2, np.dtype(np.float16)),
    2: Kind("Q4_0", 32, 18, _FLOAT32),
    3: Kind("Q4_1", 32, 20, _FLOAT32),
    6: Kind("Q5_0", 32, 22, _FLOAT32),
    7: Kind("Q5_1", 32, 24, _FLOAT32),
    8: Kind("Q8_0", 32, 34, _FLOAT32),
    12: Kind("Q4_K", 256, 144, _FLOAT32),
    13: Kind("Q5_K", 256, 176, _FLOAT32),
    14: Kind("Q6_K", 256, 210, _FLOAT32),
    30: Kind("BF16", 1, 2, np.dtype(ml_dtypes.bfloat16)),
}


class Place(NamedTuple):
    """Where a tensor lies. shape: slowest axis first, as numpy has it; offset: from the start of the file, in bytes."""

    kind: Kind
    shape: tuple[int, ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class Quantised:
    """An array whose numbers are made when it is sliced, and of no more than the slice. stored: uint8, a row's blocks on the last axis."""

    stored: np.ndarray
    kind: Kind

    @property
    def shape(self) -> tuple[int, ...]:
        return *self.stored.shape[:-1], self.stored.shape[-1] // self.kind.block_bytes * self.kind.block_size

    @property
    def dtype(self) -> np.dtype:
        return self.kind.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Raises ConfigError without the library."""
        with extras.needed("gguf"):
            import gguf

        *rows, columns = (*index, *[slice(None)] * (self.stored.ndim - len(index)))
        start, stop, step = columns.indices(self.shape[-1])
        first, last = start // self.kind.block_size, -(-stop // self.kind.block_size)
        blocks = self.stored[(*rows, slice(first * self.kind.block_bytes, last * self.kind.block_bytes))]
        inside = slice(start - first * self.kind.block_size, stop - first * self.kind.block_size, step)
        made = np.empty((*blocks.shape[:-1], len(range(start, stop, step))), self.dtype)
        if made.size:
            flat, into = blocks.reshape(-1, blocks.shape[-1]), made.reshape(-1, made.shape[-1])
            slab = max(SLAB_NUMBERS // self.shape[-1], 1)
            for at in range(0, len(flat), slab):
                into[at : at + slab] = gguf.dequantize(flat[at : at + slab], gguf.GGMLQuantizationType[self.kind.name])[:, inside]
        return made

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[()].astype(dtype or self.dtype, copy=False)


class File:
    """An open GGUF file. fields: key -> int, float, bool, str, or a list of them; tensors: name -> Place."""

    def __init__(self, path):
        """Raises MissingInput; DataError for a damaged file and, naming all of them, for types of tensors that are not read here."""
        self.where = str(path)
        try:
            self._bytes = np.memmap(path, np.uint8, "r").view(np.ndarray)
        except FileNotFoundError:
            raise MissingInput("there is no such file", self.where, "the path of a .gguf file") from None
        except (OSError, ValueError) as error:  # a folder, no permission; an empty file
            raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", self.where, CURE) from None
        try:
            self.fields, self.tensors = _header(_Reader(self._bytes), self.where)
        except ValueError as error:  # UnicodeDecodeError is one
            raise DataError(f"not a GGUF file, or a damaged one: {error}", self.where, CURE) from None

    def read(self, name: str) -> np.ndarray | Quantised:
        """A tensor in its kind's dtype: a view of the file where nothing is quantised."""
        kind, shape, offset = self.tensors[name]
        num_bytes = math.prod(shape) // kind.block_size * kind.block_bytes
        stored = self._bytes[offset : offset + num_bytes]
        if kind.block_size == 1:
            return stored.view(kind.dtype).reshape(shape)
        return Quantised(stored.reshape(*shape[:-1], shape[-1] // kind.block_size * kind.block_bytes), kind)


class _Reader:
    """A cursor over the header. Every length is compared with what is left before anything of that size is made."""

    def __init__(self, content: np.ndarray):
        self._content, self.at, self._num_items = content, 0, 0
        self._end = min(len(content), MAX_HEADER_BYTES)

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self._end - self.at:
            raise ValueError(f"it ends in the header, or byte {self.at} is wrong")
        self.at += num_bytes
        return self._content[self.at - num_bytes : self.at].tobytes()

    def number(self, layout: str) -> int:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))[0]

    def require_inside(self, name: str, offset: int, num_bytes: int) -> None:
        """Raises ValueError for a tensor that reaches beyond the end of the file."""
        if offset + num_bytes > len(self._content):
            raise ValueError(f"it ends inside of {name[:40]!r}")

    def string(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int):
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0]
        kind, count = self.number("I"), self.number("Q")
        self._num_items += count
        if self._num_items > MAX_ITEMS:
            raise ValueError(f"arrays of {self._num_items} values and more; {MAX_ITEMS} at most are read")
        return [self.string() for _ in range(count)] if kind == _STRING else self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list:
        if kind not in _SCALARS:
            raise ValueError(f"byte {self.at}: there is no type {kind} of values")
        dtype = np.dtype(_SCALARS[kind])
        found = np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return (found != 0 if kind == _BOOL else found).tolist()


def _header(reader: _Reader, where: str) -> tuple[dict, dict[str, Place]]:
    if reader.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are read, little-endian")
    num_tensors, num_fields = reader.number("Q"), reader.number("Q")
    if max(num_tensors, num_fields) > MAX_NAMES:
        raise ValueError(f"{num_tensors} tensors and {num_fields} fields; {MAX_NAMES} of each at most are read")
    fields = {}
    for _ in range(num_fields):
        key = reader.string()
        fields[key] = reader.value(reader.number("I"))
    described = [_described(reader) for _ in range(num_tensors)]
    alignment = fields.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise ValueError(f"general.alignment={alignment}")
    unread = sorted({kind for _, _, kind, _ in described} - KINDS.keys())
    if unread:
        what = f"it has tensors of types that are not read: {', '.join(map(_type_name, unread))}"
        raise DataError(what, where, f"a file of {', '.join(kind.name for kind in KINDS.values())} only")
    start = -(-reader.at // alignment) * alignment
    tensors = {name: _placed(name, shape, KINDS[kind], start + offset, reader) for name, shape, kind, offset in described}
    if len(tensors) < len(described):
        raise ValueError("two tensors have the same name")
    return fields, tensors


def _described(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape, type, offset in the data) of the next tensor."""
    name, num_dims = reader.string(), reader.number("I")
    if not 1 <= num_dims <= MAX_DIMS:
        raise ValueError(f"{name[:40]!r} has {num_dims} axes")
    shape = tuple(reader.number("Q") for _ in range(num_dims))[::-1]
    return name, shape, reader.number("I"), reader.number("Q")


def _placed(name: str, shape: tuple[int, ...], kind: Kind, offset: int, reader: _Reader) -> Place:
    if 0 in shape or shape[-1] % kind.block_size:
        raise ValueError(f"{name[:40]!r} of type {kind.name} cannot have the shape {shape}")
    reader.require_inside(name, offset, math.prod(shape) // kind.block_size * kind.block_bytes)
    return Place(kind, shape, offset)


def _type_name(kind: int) -> str:
    with extras.needed("gguf"):
        import gguf
    try:
        return gguf.GGMLQuantizationType(kind).name
    except ValueError:
        return f"number {kind}"
