"""Token ids on disk: Megatron's `.bin/.idx`, byte for byte, and a `.json` sidecar that says what the ids mean.

`.bin` holds the ids of all documents back to back; `.idx` is little-endian (megatron/core/datasets/indexed_dataset.py):

    9 bytes  "MMIDIDX\\0\\0"        u64  version, 1         u8  dtype code
    u64      S sequences           u64  D, documents + 1
    i32[S]   tokens of each sequence
    i64[S]   byte offset of each sequence in .bin
    i64[D]   document boundaries, counted in sequences: 0 ... S

`StoreWriter` makes a document one sequence. `Store` reads any Megatron file of token ids whose sequences lie back to back.
"""

import array
import contextlib
import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Iterator

import numpy as np

from mtnlg.core import files
from mtnlg.core.errors import DataError, MissingInput

MAGIC = b"MMIDIDX\0\0"
VERSION = 1
SIDECAR_VERSION = 1
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}

_HEADER = struct.Struct("<9sQBQQ")
_SCAN_TOKENS = 1 << 22
_INDEX_DOCUMENTS = 1 << 18  # written at once
_CURE = "prepare the data again"


def token_dtype(vocab_size: int) -> type[np.integer]:
    """Megatron's choice (DType.optimal_dtype): uint16 below 65500 ids, else int32."""
    return np.uint16 if vocab_size < 65500 else np.int32


def paths(prefix) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    """(.bin, .idx, .json) of a store."""
    return tuple(pathlib.Path(f"{prefix}{suffix}") for suffix in (".bin", ".idx", ".json"))


class StoreWriter:
    """Writes one store, document by document, in memory that grows only by the documents' lengths.

    Files bear temporary names until `close()`, which puts `.idx` last, so a half-written store is never taken for a whole one.
    The sidecar says `eod_id`, with which every document ends, if it is given, and the SHA-256 of .bin and .idx.
    As a context manager it closes at the end, and after an exception it removes what it wrote and leaves an older store alone.

    Raises CannotWrite, or TemporaryFailure on a full disk, from every method.
    """

    def __init__(self, prefix, *, tokenizer_sha256: str, vocab_size: int, eod_id: int | None = None):
        self._bin, self._idx, self._json = paths(prefix)
        self._dtype = np.dtype(token_dtype(vocab_size))
        self._lengths, self._hash = array.array("i"), hashlib.sha256()
        self._sidecar = {
            "format_version": SIDECAR_VERSION,
            "tokenizer_sha256": tokenizer_sha256,
            "vocab_size": vocab_size,
            "eod_id": eod_id,
            "max_id": -1,
            "num_tokens": 0,
            "num_documents": 0,
            "num_bytes": 0,
        }
        with files.writing(self._bin):
            self._bin.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(files.draft(self._bin), "wb")  # noqa: SIM115 (closed in close)

    def add(self, ids, num_bytes: int = 0) -> None:
        """Appends a document: its ids, and the bytes of its original text. Raises DataError on an id outside the vocabulary."""
        self.extend(np.asarray(ids, np.int64), [len(ids)], num_bytes)

    def extend(self, ids: np.ndarray, lengths, num_bytes: int = 0) -> None:
        """Appends documents: their ids back to back, how many each has, and the bytes of all their texts. Raises as `add`."""
        sidecar = self._sidecar
        if ids.size and not 0 <= ids.min() <= ids.max() < sidecar["vocab_size"]:
            number = len(self._lengths) if len(lengths) == 1 else f"{len(self._lengths)} or one of the {len(lengths) - 1} behind it"
            raise DataError(
                f"document {number} has ids {ids.min()} to {ids.max()}, the vocabulary has {sidecar['vocab_size']}",
                str(self._bin),
                "the tokenizer this store is meant for",
            )
        sidecar["num_tokens"] += ids.size
        content = ids.astype(self._dtype, copy=False).tobytes()
        with self._errors():
            self._file.write(content)
        self._hash.update(content)
        sidecar["max_id"] = max(sidecar["max_id"], int(ids.max()) if ids.size else -1)
        sidecar["num_bytes"] += num_bytes
        self._lengths.frombytes(np.asarray(lengths, np.int32).tobytes())

    def close(self) -> None:
        """Finishes the store and gives its files their names."""
        try:
            with self._errors():
                files.sync(self._file)
                self._file.close()
                digests = {"bin_sha256": self._hash.hexdigest(), "idx_sha256": self._write_index()}
                self._sidecar |= {"num_documents": len(self._lengths)} | digests
                files.write_synced(files.draft(self._json), json.dumps(self._sidecar, indent=1) + "\n")
                self._idx.unlink(missing_ok=True)
                for path in (self._bin, self._json, self._idx):
                    os.replace(files.draft(path), path)
                files.sync_folder(self._bin.parent)
        finally:
            self._discard()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
        else:
            self._discard()

    def _errors(self):
        size = self._sidecar["num_tokens"] * self._dtype.itemsize + 20 * len(self._lengths)
        return files.writing(self._bin, size)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the last buffer once more
            self._file.close()
        for path in (self._bin, self._json, self._idx):
            files.draft(path).unlink(missing_ok=True)

    def _write_index(self) -> str:
        """Its SHA-256."""
        digest = hashlib.sha256()

        def hashed():
            for piece in self._index():
                digest.update(piece)
                yield piece

        files.write_synced(files.draft(self._idx), hashed())
        return digest.hexdigest()

    def _index(self) -> Iterator[bytes]:
        num_documents, offset = len(self._lengths), 0
        code = next(code for code, dtype in DTYPES.items() if dtype == self._dtype)
        yield _HEADER.pack(MAGIC, VERSION, code, num_documents, num_documents + 1)
        yield memoryview(self._lengths)
        for start in range(0, num_documents, _INDEX_DOCUMENTS):
            sizes = np.array(self._lengths[start : start + _INDEX_DOCUMENTS], np.int64) * self._dtype.itemsize
            ends = offset + np.cumsum(sizes)
            yield (ends - sizes).tobytes()
            offset = int(ends[-1])
        for start in range(0, num_documents + 1, _INDEX_DOCUMENTS):
            yield np.arange(start, min(start + _INDEX_DOCUMENTS, num_documents + 1), dtype=np.int64).tobytes()


class Store:
    """A checked, memory-mapped store, read as one flat stream of tokens.

    num_tokens, num_documents: counts. document_starts: int64 [num_documents + 1], the first token of each document, then num_tokens.
    dtype: of the ids on disk. vocab_size: as given; what `read` gives is judged by it when it is handed to `require_known`.
    sidecar: the dict of `<prefix>.json`, or None when there is none that agrees with the index (files of Megatron's have none).

    Raises MissingInput when a file is not there; DataError when one is damaged, when the store is empty, or, with `vocab_size`,
    when an id is outside it.
    """

    def __init__(self, prefix, *, vocab_size: int | None = None):
        self.prefix, self.vocab_size = str(prefix), vocab_size
        self._bin, self._idx, self._json = paths(prefix)
        for path in (self._idx, self._bin):
            if not path.is_file():
                raise MissingInput("there is no such file", str(path), _CURE)
            if not os.access(path, os.R_OK):
                raise MissingInput("this file cannot be read: permission denied", str(path), "its owner's permission")
        self.dtype, self.document_starts = _read_index(self._idx, self._bin.stat().st_size)
        self.num_documents = len(self.document_starts) - 1
        self.num_tokens = int(self.document_starts[-1])
        if not self.num_tokens:
            raise DataError("the store holds no tokens", str(self._idx), "a source with text in it, prepared again")
        self._tokens = np.memmap(self._bin, self.dtype, "r")
        self.sidecar = self._read_sidecar()
        if vocab_size is not None:
            self._require_inside(*((0, self.sidecar["max_id"]) if self.sidecar else self.extremes()))

    def read(self, start: int, count: int) -> np.ndarray:
        """int32 [count]: tokens start ... start + count - 1 of the stream. Raises IndexError outside it."""
        if not 0 <= start <= start + count <= self.num_tokens:
            raise IndexError(f"tokens {start} to {start + count} of {self.num_tokens} in {self.prefix}")
        return self._tokens[start : start + count].astype(np.int32)

    def require_known(self, ids: np.ndarray) -> None:
        """Raises DataError when ids that were read are outside vocab_size: the sidecar vouches for the file as it was written."""
        if self.vocab_size is not None:
            self._require_inside(int(ids.min()), int(ids.max()))

    def _read_sidecar(self) -> dict | None:
        try:
            sidecar = json.loads(self._json.read_bytes())
            counts = (sidecar["format_version"], sidecar["num_tokens"], sidecar["num_documents"])
            whole = counts == (SIDECAR_VERSION, self.num_tokens, self.num_documents) and isinstance(sidecar["max_id"], int)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"the sidecar is damaged: {error}", str(self._json), _CURE) from error
        return sidecar if whole else None

    def extremes(self) -> tuple[int, int]:
        """(lowest, highest) id that is there: reads the whole file."""
        chunks = [self._tokens[start : start + _SCAN_TOKENS] for start in range(0, self.num_tokens, _SCAN_TOKENS)]
        return min(int(c.min()) for c in chunks), max(int(c.max()) for c in chunks)

    def last_ids(self) -> np.ndarray:
        """int64 [num_documents]: with which id each document ends; -1 for an empty one."""
        ends, is_empty = self.document_starts[1:], np.diff(self.document_starts) == 0
        return np.where(is_empty, -1, self._tokens[ends - 1].astype(np.int64))

    def _require_inside(self, lowest: int, highest: int) -> None:
        if lowest < 0 or highest >= self.vocab_size:
            raise DataError(
                f"ids go from {lowest} to {highest}, the vocabulary has {self.vocab_size}",
                str(self._bin),
                f"the tokenizer the data was made with, --config.model.vocab_size={highest + 1}, or {_CURE}",
            )


def _read_index(path: pathlib.Path, bin_bytes: int) -> tuple[np.dtype, np.ndarray]:
    """(dtype of the ids, document_starts int64 [documents + 1]) of an `.idx` file that fits a `.bin` of bin_bytes."""

    def damaged(what):
        return DataError(what, str(path), _CURE)

    content = path.read_bytes()
    if content[:9] != MAGIC:
        raise damaged(f"not an index of tokens: it starts with {content[:9]!r}, not {MAGIC!r}")
    if len(content) < _HEADER.size:
        raise damaged(f"the index is cut off: {len(content)} bytes, its header alone has {_HEADER.size}")
    _, version, code, num_sequences, num_boundaries = _HEADER.unpack_from(content)
    if version != VERSION:
        raise damaged(f"index version {version}, known is {VERSION}")
    if code not in DTYPES:
        raise damaged(f"dtype code {code} is none of token ids {sorted(DTYPES)}")
    expected = _HEADER.size + 12 * num_sequences + 8 * num_boundaries
    if len(content) not in (expected, expected + num_sequences):  # multimodal files end with a mode of each sequence
        raise damaged(f"the index has {len(content)} bytes, its header promises {expected}")

    lengths = np.frombuffer(content, "<i4", num_sequences, _HEADER.size)
    offsets = np.frombuffer(content, "<i8", num_sequences, _HEADER.size + 4 * num_sequences)
    boundaries = np.frombuffer(content, "<i8", num_boundaries, _HEADER.size + 12 * num_sequences)
    dtype = np.dtype(DTYPES[code])
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if (lengths < 0).any() or (offsets != starts[:-1] * dtype.itemsize).any():
        raise damaged("the sequences do not lie back to back")
    if not num_boundaries or boundaries[0] != 0 or boundaries[-1] != num_sequences or (np.diff(boundaries) < 0).any():
        raise damaged(f"the document boundaries do not rise from 0 to {num_sequences}")
    if starts[-1] * dtype.itemsize != bin_bytes:
        bin_path = path.with_suffix(".bin")
        raise DataError(f"the file has {bin_bytes} bytes, its index promises {starts[-1] * dtype.itemsize}", str(bin_path), _CURE)
    return dtype, starts[boundaries]
