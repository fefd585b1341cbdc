"""WARC (ISO 28500): records cut from a stream whose lengths may lie, and the page inside a response."""

import http.client
import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from mtnlg.core.errors import DataError
from mtnlg.factory import documents
from mtnlg.factory.documents import Unreadable
from mtnlg.factory.inputs import Piece

_MAX_HEAD_BYTES = 64_000
_SKIPPED_BYTES = 2**20  # at once
_CHUNK_SIZE = re.compile(rb"\s*([0-9A-Fa-f]{1,8})[^\n]{0,100}\n")


class Page(NamedTuple):
    """A response: its record's headers by name in small letters, and what the server sent, unpacked."""

    about: dict[str, str]
    status: int
    media_type: str
    charset: str
    body: bytes


def pieces(stream: BinaryIO) -> Iterator[Piece]:
    """The response records whole, headers and all; Unreadable for what is too long, or no record. Raises DataError."""
    number, lost = 0, False  # lost: behind a record whose length was wrong
    while line := stream.readline(_MAX_HEAD_BYTES):
        if not line.startswith(b"WARC/1."):
            if line.strip() and not lost:
                lost = True
                yield number + 1, Unreadable("no WARC record where one should begin")
            continue
        number, lost = number + 1, False
        head = line + _rest_of_head(stream)
        about = _about(head)
        length = about.get("content-length", "")
        if not (length.isdecimal() and length.isascii() and len(length) < 20):
            yield number, Unreadable("a WARC record without a length")
        elif about.get("warc-type") != "response":
            _skip(stream, int(length))
        elif int(length) > documents.MAX_RECORD_BYTES:
            _skip(stream, int(length))
            yield number, Unreadable("too long")
        else:
            yield number, head + _read(stream, int(length))


def page(content: bytes) -> Page:
    """The page of a response record. Raises Unreadable."""
    stream = io.BytesIO(content)
    about = _about(stream.readline() + _rest_of_head(stream))
    version, _, status = stream.readline(_MAX_HEAD_BYTES).partition(b" ")
    try:
        headers = http.client.parse_headers(stream)
    except http.client.HTTPException:
        raise Unreadable("HTTP headers that cannot be read") from None
    if not version.startswith(b"HTTP/") or not status[:3].isdigit():
        raise Unreadable("no HTTP response")
    body = stream.read()
    if "chunked" in str(headers.get("Transfer-Encoding", "")).lower():
        body = _dechunked(body)
    body = _unpacked(body, str(headers.get("Content-Encoding", "")).strip().lower())
    return Page(about, int(status[:3]), headers.get_content_type(), headers.get_content_charset() or "", body)


def _rest_of_head(stream: BinaryIO) -> bytes:
    """The header lines of a record and the blank one behind them; what is longer ends there."""
    lines, size = [], 0
    while size < _MAX_HEAD_BYTES and (line := stream.readline(_MAX_HEAD_BYTES)):
        lines.append(line)
        size += len(line)
        if not line.strip():
            break
    return b"".join(lines)


def _about(head: bytes) -> dict[str, str]:
    """Header fields by name in small letters; of several with one name, the first."""
    fields = (line.partition(":") for line in head.decode(errors="replace").split("\n")[1:])
    found: dict[str, str] = {}
    for name, _, value in fields:
        found.setdefault(name.strip().lower(), value.strip())
    return found


def _read(stream: BinaryIO, length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise DataError("the file ends inside a WARC record", "", "")
    return content


def _skip(stream: BinaryIO, length: int) -> None:
    while length > 0:
        length -= len(_read(stream, min(length, _SKIPPED_BYTES)))


def _dechunked(body: bytes) -> bytes:
    """Without the sizes of chunks; from where there is none on, and often there was none from the beginning, as it is."""
    parts, place = [], 0
    while found := _CHUNK_SIZE.match(body, place):
        size, start = int(found[1], 16), found.end()
        if not size:
            return b"".join(parts)
        parts.append(body[start : start + size])
        place = start + size
        place += 2 if body.startswith(b"\r\n", place) else 0
    return b"".join([*parts, body[place:]])


def _unpacked(body: bytes, encoding: str) -> bytes:
    """Raises Unreadable for an encoding that is not known, or what unpacks to more than a record may have."""
    if encoding in ("", "identity", "none", "utf-8"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Unreadable("a content encoding that is not known")
    for window in (47, -15):  # gzip or zlib by its header; deflate alone, as some servers send it
        unpacker = zlib.decompressobj(window)
        try:
            content = unpacker.decompress(body, documents.MAX_RECORD_BYTES)
        except zlib.error:
            continue
        if unpacker.unconsumed_tail:
            raise Unreadable("too long")
        return content
    return body  # who stored it unpacked it and left the header
