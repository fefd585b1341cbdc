"""Which part of a source is held out: decided by a hash of each document's id.

So a document stays on its side when the corpus grows, moves or is read in another order, and every reading gives the same split.
"""

import hashlib
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mtnlg.core import schema
from mtnlg.core.errors import DataError
from mtnlg.corpus import sources

_HASHES = 2**64


@dataclass(frozen=True)
class Survey:
    """What one reading of a source found, and where its split lies."""

    source: str
    num_documents: int
    num_bytes: int  # of UTF-8 text
    drops: dict[str, int]  # {reason: documents left out}
    threshold: int | None  # documents whose hash is below it are held out; none: there is one document only, which is cut
    data: schema.Data

    def sides(self) -> Iterator[tuple[bool, str]]:
        """(is held out, text) of every document, read again. Raises what `sources.documents` raises."""
        for document in sources.documents(self.source, max_document_bytes=self.data.max_document_bytes):
            if self.threshold is None:
                end = _cut(document.text, self.data.heldout_fraction)
                yield False, document.text[:end]
                yield True, document.text[end:]
            else:
                yield _hash(document.id) < self.threshold, document.text


def survey(source: str, data: schema.Data) -> Survey:
    """Reads a source once and decides its split: about data.heldout_fraction of the documents, and something on both sides.

    Raises what `sources.documents` raises, and DataError when several documents share their one id: nothing tells them apart.
    """
    drops: Counter = Counter()
    num_documents = num_bytes = lowest = highest = 0
    for document in sources.documents(source, max_document_bytes=data.max_document_bytes, drops=drops):
        hashed = _hash(document.id)
        lowest, highest = (min(lowest, hashed), max(highest, hashed)) if num_documents else (hashed, hashed)
        num_documents += 1
        num_bytes += len(document.text.encode())
    if lowest == highest and num_documents > 1:
        cure = 'an "id" of its own for each document, or none'
        raise DataError(f"all {num_documents} documents have the id {document.id!r}, so none can be held out", source, cure)
    threshold = min(max(int(data.heldout_fraction * _HASHES), lowest + 1), highest) if lowest < highest else None
    return Survey(source, num_documents, num_bytes, dict(drops), threshold, data)


def sample(surveys: Iterable[Survey], max_bytes: int) -> Iterator[str]:
    """About max_bytes of training text, taken in whole documents and evenly from the beginning to the end of every source."""
    surveys = list(surveys)
    share = max_bytes / sum(survey.num_bytes * (1 - survey.data.heldout_fraction) for survey in surveys)
    seen = taken = 0
    for survey in surveys:
        for heldout, text in survey.sides():
            if heldout:
                continue
            size = len(text.encode())
            seen += size
            if taken < share * seen:
                taken += size
                yield text


def names(source_list: Iterable[str]) -> list[str]:
    """A file name for each source: its own without folder and suffix, numbered where it is taken (also in another case)."""
    found: list[str] = []
    for source in source_list:
        path = pathlib.Path(source).resolve()
        stem = name = path.name[: len(path.name) - len(sources.suffix(path))] or "text"
        number = 1
        while name.casefold() in map(str.casefold, found):
            number += 1
            name = f"{stem}-{number}"
        found.append(name)
    return found


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _cut(text: str, heldout_fraction: float) -> int:
    """Where the held-out end of a document starts: at a line, unless that would more than double it."""
    if len(text) < 2:
        raise DataError("the only document is too short to hold any of it out", "data.source", "more text")
    end = min(max(int(len(text) * (1 - heldout_fraction)), 1), len(text) - 1)
    return text.rfind("\n", max(2 * end - len(text), 0), end) + 1 or end
