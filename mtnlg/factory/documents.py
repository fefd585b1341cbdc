"""Documents on their way through the factory: a JSON object a line, with `id`, `text`, `source` and whatever stages put beside them."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

MAX_RECORD_BYTES = 10_000_000
MAX_DEPTH = 100  # of objects and lists inside a record
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


_TOO_DEEP = "nested too deep"
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Unreadable(Exception):
    """A record that gives no document; its text is the reason, in a few words, the same for every record with this fault."""


@dataclass(frozen=True)
class Drop:
    """What a step gives back for a document that is left out."""

    reason: str


def parse(record: Record, text_field: str = "text") -> dict:
    """The document of a line of JSONL; without an id of its own it gets `where`, without a source that of its input.

    text_field: the key of the text, which is `text` in the document. Raises Unreadable.
    """
    if record.fault:
        raise Unreadable(record.fault)
    try:
        content = record.content.decode("utf-8-sig")  # json, left to itself, takes half characters in bytes for UTF-8
        document = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise Unreadable("invalid utf-8") from None
    except (ValueError, RecursionError):
        raise Unreadable(_TOO_DEEP if _is_deep(record.content) else "not JSON") from None
    if not isinstance(document, dict):
        raise Unreadable("not a JSON object")
    if not isinstance(text := document.pop(text_field, None), str):
        raise Unreadable("no text")
    document["text"] = text
    _require_shallow(document)
    if not isinstance(document.get("id"), str | int | None):
        raise Unreadable("an id that is no word or number")
    if not isinstance(document.get("source", ""), str):
        raise Unreadable("a source that is no word")
    id = record.where if document.get("id") is None else str(document["id"])
    found = {"id": id, "text": document["text"], "source": record.source}
    found |= {key: value for key, value in document.items() if key not in ("id", "text")}
    if b"\\u" in record.content:  # in UTF-8 only an escape can write half a character
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


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is no number that JSON could be written with again")
    return value


def _is_deep(content: bytes) -> bool:
    """Whether brackets, those in strings too, are nested deeper than MAX_DEPTH."""
    depth = 0
    for one in content.translate(None, _NO_BRACKETS):
        depth += 1 if one in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _require_shallow(document: dict) -> None:
    """Raises Unreadable long before json would: at a depth that depends on who calls it, so that workers would not agree."""
    level = [value for value in document.values() if isinstance(value, dict | list)]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        inside = (value.values() if isinstance(value, dict) else value for value in level)
        level = [one for values in inside for one in values if isinstance(one, dict | list)]
    raise Unreadable(_TOO_DEEP)
