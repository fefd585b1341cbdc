"""From a source named in `data.source` to a stream of documents, one at a time, however large the corpus.

A source is the word `python` (the library of this Python installation: about 13 MB of text that every user has), or a file or
folder of `.txt` and `.jsonl`, plain or compressed (`.gz`, `.zst`). A folder called `python` is reached as `./python`.
"""

import gzip
import io
import json
import os
import pathlib
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from mtnlg.core.errors import ConfigError, DataError, MissingInput

PYTHON = "python"
SUFFIXES = tuple(kind + packing for kind in (".txt", ".jsonl") for packing in ("", ".gz", ".zst"))

_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "__pycache__"}
FREE_BYTES = 16_000_000  # that a file of any size may unpack to
_ZSTD_CHUNK_BYTES = 256  # a block of 128 KiB takes 4 bytes at least, so this can swell to 8 MiB and no further


@dataclass(frozen=True)
class Document:
    """A text with a name that is the same wherever the corpus lies and whatever else is in it."""

    id: str
    text: str


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `id` is its path inside the source, with `/` between the parts."""

    id: str
    path: pathlib.Path


def documents(source: str, *, max_document_bytes: int, drops: Counter | None = None) -> Iterator[Document]:
    """The documents of a source, always in the same order; memory is a few times max_document_bytes, however long the source.

    A `.txt` (or a Python file) is one document, or, above max_document_bytes, several: cut at blank lines, at a line's end where
    there is none, inside a line at last, so that they still add up to the file. A `.jsonl` has an object a line with `text` and
    perhaps `id`; a blank line is nothing. Left out and counted in `drops`, when the source has been read to its end: lines
    of a `.jsonl` above max_document_bytes ("too long"), text that is not UTF-8 ("invalid utf-8") and empty text ("empty").

    Raises MissingInput (no such path, or unreadable), ConfigError (a kind of file that is not read), DataError (damaged file, line
    that is not an object with text, or no document left).
    """
    dropped: Counter = Counter()
    found = False
    for file in files(source):
        read = _jsonl if ".jsonl" in suffix(file.path) else _txt
        with opened(file.path) as stream:
            for document in read(file, stream, max_document_bytes, dropped):
                found = True
                yield document
    if drops is not None:
        drops.update(dropped)
    if not found and dropped:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        cure = f"a --config.data.max_document_bytes above {max_document_bytes}" if dropped["too long"] else "text in UTF-8"
        raise DataError(f"no document is left of {source}: {counts}", "data.source", cure)
    if not found:
        raise DataError(f"there is no text in {source}", "data.source", f"a source with {', '.join(SUFFIXES)}")


def files(source: str) -> Iterator[SourceFile]:
    """The files of a source, sorted folder by folder. Raises MissingInput, or ConfigError for a kind of file that is not read."""
    if source == PYTHON:
        root = pathlib.Path(sysconfig.get_path("stdlib"))
        if not (root / "os.py").is_file():
            raise MissingInput(f"this Python has no library sources in {root}", "data.source", "a file or folder of text")
        yield from walk(root, lambda name: name.endswith(".py"), skipped=_NOT_LIBRARY)
        return
    path = pathlib.Path(source)
    if path.is_dir():
        yield from walk(path, lambda name: bool(suffix(name)))
    elif not path.exists():
        raise MissingInput(f"there is no file or folder {source!r}", "data.source", f"a path that exists, or --config.data.source={PYTHON}")
    elif not suffix(path):
        raise ConfigError(f"{source!r} is not a kind of file that is read", "data.source", f"one of {', '.join(SUFFIXES)}")
    else:
        yield SourceFile(path.name, path)


def walk(root: pathlib.Path, wanted: Callable[[str], bool], skipped: Set[str] = frozenset()) -> Iterator[SourceFile]:
    """The wanted files below a folder, holding the names of one folder at a time; a link to a folder is taken for a file."""

    def refuse(error: OSError):
        raise MissingInput(f"cannot be read: {error.strerror}", error.filename, "permission to read it") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        names += [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        subfolders[:] = sorted(name for name in subfolders if name not in skipped)
        for name in sorted(filter(wanted, names)):
            path = pathlib.Path(folder, name)
            yield SourceFile(printable(path.relative_to(root).as_posix()), path)


def printable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def suffix(path: str | pathlib.Path) -> str:
    """Which of SUFFIXES a path ends in, or nothing."""
    return next((known for known in SUFFIXES if str(path).lower().endswith(known)), "")


def is_packed(path: pathlib.Path) -> bool:
    """Whether the file's bytes are not those of its text."""
    return path.name.lower().endswith((".gz", ".zst"))


def _txt(file: SourceFile, stream: BinaryIO, limit: int, drops: Counter) -> Iterator[Document]:
    buffer = stream.read(limit + 1)
    number = 0
    while len(buffer) > limit:
        end = _cut(buffer[:limit])
        number += 1
        yield from _document(f"{file.id}#{number}", buffer[:end], drops)
        buffer = buffer[end:] + stream.read(limit + 1 - (len(buffer) - end))
    yield from _document(f"{file.id}#{number + 1}" if number else file.id, buffer, drops)


def _cut(text: bytes) -> int:
    """Where a document ends that is cut from the start of a longer text: as late as a blank line, a line or a character allows."""
    blank = max(text.rfind(mark) + len(mark) if mark in text else 0 for mark in (b"\n\n", b"\n\r\n"))
    if blank or b"\n" in text:
        return blank or text.rfind(b"\n") + 1
    start = len(text) - 1  # of the last character, which may go on behind the end
    while start > 0 and text[start] & 0xC0 == 0x80:
        start -= 1
    return start or len(text)


def _document(id: str, data: bytes, drops: Counter) -> Iterator[Document]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        drops["invalid utf-8"] += 1
        return
    if text:
        yield Document(id, text)
    else:
        drops["empty"] += 1


def _jsonl(file: SourceFile, stream: BinaryIO, limit: int, drops: Counter) -> Iterator[Document]:
    for number, line in enumerate(lines(stream, limit), 1):
        if line is None:
            drops["too long"] += 1
            continue
        try:
            decoded = line.decode()
        except UnicodeDecodeError:
            drops["invalid utf-8"] += 1
            continue
        if not decoded.strip():
            continue
        record = _record(decoded, f"{file.path}:{number}")
        id = record.get("id")
        data = record["text"].encode("utf-8", "surrogatepass")  # half a pair, written as an escape, is found when it is decoded
        yield from _document(f"{file.id}:{number}" if id is None else str(id), data, drops)


def lines(stream: BinaryIO, limit: int) -> Iterator[bytes | None]:
    """Every line; None for one above `limit` bytes, which is passed over without being held."""
    while line := stream.readline(limit + 1):
        if len(line) <= limit or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(limit + 1)
        yield None


def _record(line: str, where: str) -> dict:
    """The object of a `.jsonl` line, its `text` a string. Raises DataError naming file, line, and what is there instead."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where, "one JSON object a line, in UTF-8 without a byte order mark") from None
    if not isinstance(record, dict):
        raise DataError(f"a JSON {type(record).__name__}, not an object", where, 'lines like {"text": "..."}')
    if "text" not in record:
        raise DataError(f"no key `text`; its keys are {', '.join(record) or 'none'}", where, 'lines like {"text": "..."}')
    if not isinstance(record["text"], str):
        raise DataError(f"`text` is a {type(record['text']).__name__}, not a string", where, 'lines like {"text": "..."}')
    return record


@contextmanager
def opened(path: pathlib.Path, max_ratio: int | None = None) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked. max_ratio: so many for each byte of the file at most, beyond the first 16 MB.

    Raises DataError when it is damaged, cut short or unpacks to more, MissingInput when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if path.name.lower().endswith(".gz"):
                stream = gzip.GzipFile(fileobj=file)
            elif path.name.lower().endswith(".zst"):
                stream = io.BufferedReader(_ZstdFile(file))
            else:
                stream = file
            yield io.BufferedReader(_Limited(stream, file, max_ratio), 2**17) if max_ratio and stream is not file else stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"damaged or cut short: {error}", str(path), "a fresh copy of the file") from None
    except OSError as error:
        raise MissingInput(f"cannot be read: {error.strerror}", str(path), "permission to read it, or a source without it") from error


class _Limited(io.RawIOBase):
    """The bytes of `unpacked`, which unpacks `packed`, until they are too many."""

    def __init__(self, unpacked: BinaryIO, packed: BinaryIO, max_ratio: int):
        self._unpacked, self._packed, self._max_ratio, self._size = unpacked, packed, max_ratio, 0

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        count = self._unpacked.readinto(target)
        self._size += count
        if self._size > FREE_BYTES + self._max_ratio * self._packed.tell():
            what = f"unpacks to more than {self._max_ratio} times its size"
            raise DataError(what, str(self._packed.name), "the file unpacked, if it is no trap")
        return count


class _ZstdFile(io.RawIOBase):
    """The unpacked bytes of a `.zst` of one or more frames.

    `zstandard`'s own stream_reader takes the end of a file inside a frame for its regular end; this raises EOFError.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame = None
        self._packed = b""
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target) -> int:
        while not self._unpacked:
            self._packed = self._packed or self._file.read(_ZSTD_CHUNK_BYTES)
            if not self._packed and self._frame:
                raise EOFError("the file ends inside a zstd frame")
            if not self._packed:
                return 0
            self._unpack()
        count = min(len(target), len(self._unpacked))
        target[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _unpack(self) -> None:
        import zstandard

        self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            self._unpacked = memoryview(self._frame.decompress(self._packed))
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self._packed = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
