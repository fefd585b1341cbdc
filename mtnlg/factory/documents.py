"""Documents on their way through the factory: a JSON object a line, with `id`, `text`, `source` and whatever stages put beside them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

MAX_RECORD_BYTES = 10_000_000
SHOWN_CHARS = 300  # of a text, in a sample to look at


@dataclass(frozen=True)
class Record:
    """A piece of an input as it lies there, for a worker to make documents of.

    where: FILE:NUMBER. source: name of the input. kind: what `content` is, `json` for a line of JSONL. fault: why there is no content.
    """

    where: str
    source: str
    content: bytes
    kind: str = "json"
    fault: str = ""


class Unreadable(Exception):
    """A record that gives no document; its text is the reason, in a few words, the same for every record with this fault."""


@dataclass(frozen=True)
class Drop:
    """What a step gives back for a document that is left out."""

    reason: str


def parse(record: Record) -> dict:
    """The document of a line of JSONL; without an id of its own it gets `where`, without a source that of its input.

    Raises Unreadable.
    """
    if record.fault:
        raise Unreadable(record.fault)
    try:
        document = json.loads(record.content, parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise Unreadable("invalid utf-8") from None
    except (ValueError, RecursionError):
        raise Unreadable("not JSON") from None
    if not isinstance(document, dict):
        raise Unreadable("not a JSON object")
    if not isinstance(document.get("text"), str):
        raise Unreadable("no text")
    if not isinstance(document.get("id"), str | int | None):
        raise Unreadable("an id that is no word or number")
    if not isinstance(document.get("source", ""), str):
        raise Unreadable("a source that is no word")
    id = record.where if document.get("id") is None else str(document["id"])
    found = {"id": id, "text": document["text"], "source": record.source}
    found |= {key: value for key, value in document.items() if key not in ("id", "text")}
    if b"\\u" in record.content:  # only an escape can write half a character
        try:
            line(found)
        except UnicodeEncodeError:
            raise Unreadable("lone surrogates") from None
    return found


def line(document: dict) -> bytes:
    """A document as a line of JSONL, the same bytes for the same document."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def lines(documents: Iterable[dict]) -> bytes:
    return b"".join(map(line, documents))


def shown(text: str) -> str:
    """The beginning of a text, for a person to look at."""
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no JSON")
