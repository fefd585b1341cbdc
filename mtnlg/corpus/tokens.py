"""Folders of tokens, as `python -m mtnlg data tokenize` writes them: one store, and the tokenizer that made it.

tokens.bin, tokens.idx, tokens.json    see mtnlg.data.store
tokenizer/                             for `tokenizer.load`
"""

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.corpus.sources import SourceFile
from mtnlg.data import order
from mtnlg.data.store import Store, StoreWriter, paths
from mtnlg.data.tokenizer import Tokenizer

NAME = "tokens"
TOKENIZER = "tokenizer"
PART_SUFFIX = ".tokens"  # of what a stage has written that has not ended

_CHUNK_TOKENS = 1 << 21


@dataclass(frozen=True)
class Chunk:
    """Some documents of a store, in order. numbers: of each in the store; lengths: in tokens; ids: back to back."""

    numbers: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray

    def only(self, wanted: np.ndarray) -> "Chunk":
        """wanted: bool for each document."""
        return Chunk(self.numbers[wanted], self.lengths[wanted], self.ids[np.repeat(wanted, self.lengths)])

    def num_bytes(self, tokenizer: Tokenizer) -> int:
        """Of the documents' text, as the tokens spell it."""
        return int(tokenizer.piece_bytes[self.ids].sum()) - tokenizer.has_dummy_prefix * int(np.count_nonzero(self.lengths > 1))

    def documents(self) -> list[np.ndarray]:
        return np.split(self.ids, np.cumsum(self.lengths)[:-1])[: self.numbers.size]


def is_folder(source: str) -> bool:
    """Whether a source is a folder of tokens. Raises DataError for one whose stage has not ended."""
    path = pathlib.Path(source)
    found = (path / f"{NAME}.idx").is_file()
    if not found and path.is_dir() and any(path.glob(f"part-*{PART_SUFFIX}*")):
        raise DataError("the stage that writes these tokens has not ended", source, "that stage's command again, which goes on")
    return found


def require_folder(path: str, option: str) -> None:
    """Raises MissingInput where there are no tokens, naming the folders inside that have some; DataError for unfinished ones."""
    if is_folder(path):
        return
    inside = sorted(str(one.parent) for one in pathlib.Path(path).glob(f"*/{NAME}.idx"))
    cure = f"{' or '.join(inside[:3])}" if inside else "a folder that python -m mtnlg data tokenize wrote"
    raise MissingInput(f"there are no tokens in {path!r}", option, cure)


def locate(path: str) -> tuple[pathlib.Path, pathlib.Path | None]:
    """(prefix of the store, its tokenizer if one lies beside it) of a folder of tokens, or of one file of a store.

    Raises MissingInput.
    """
    found = pathlib.Path(path)
    prefix = found / NAME if found.is_dir() else found.with_suffix("") if found.suffix in (".bin", ".idx", ".json") else found
    if not any(file.exists() for file in paths(prefix)):
        require_folder(path, "FILE")
    tokenizer = prefix.parent / TOKENIZER
    return prefix, tokenizer if tokenizer.is_dir() else None


def files(folder) -> list[SourceFile]:
    return [SourceFile(path.name, path) for path in paths(pathlib.Path(folder) / NAME)]


def open_store(folder, tokenizer: Tokenizer) -> Store:
    """The store of a folder, whose tokens must be of this tokenizer. Raises ConfigError where they are not, MissingInput, DataError."""
    store = Store(pathlib.Path(folder) / NAME)
    if (store.sidecar or {}).get("tokenizer_sha256") != tokenizer.sha256:
        cure = f"--config.data.tokenizer={pathlib.Path(folder) / TOKENIZER}"
        raise ConfigError("its tokens are of another tokenizer than the one that is given", str(folder), cure)
    store.vocab_size = tokenizer.vocab_size
    return store


def writer(prefix, tokenizer: Tokenizer) -> StoreWriter:
    """A writer of a tokenizer's ids."""
    return StoreWriter(prefix, tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size, eod_id=tokenizer.eod_id)


def chunks(store: Store) -> Iterator[Chunk]:
    """All documents of a store; a chunk has about 2 million tokens, or one document that is longer. Raises DataError."""
    starts, first = store.document_starts, 0
    while first < store.num_documents:
        end = max(int(np.searchsorted(starts, starts[first] + _CHUNK_TOKENS, side="right")) - 1, first + 1)
        lengths = np.diff(starts[first : end + 1])
        ids = store.read(int(starts[first]), int(lengths.sum()))
        if ids.size:
            store.require_known(ids)
        yield Chunk(np.arange(first, end), lengths, ids)
        first = end


def hashes(num_documents: int) -> np.ndarray:
    """uint64 for each document, of its number alone: for splits that stay when documents are added at the end."""
    return order.splitmix64(np.arange(num_documents, dtype=np.uint64))


class Source:
    """A folder of tokens as a source to train on: about `heldout_fraction` of its documents are held out, by a hash of their numbers.

    num_bytes: of the documents' text. drops: nothing.
    Raises what `open_store` raises, and DataError for a single document, of which nothing can be held out.
    """

    def __init__(self, folder: str, tokenizer: Tokenizer, heldout_fraction: float):
        self._store, self._tokenizer = open_store(folder, tokenizer), tokenizer
        if self._store.num_documents < 2:
            raise DataError("a single document, of which nothing can be held out", folder, "tokens of more documents, or their text")
        hashed = hashes(self._store.num_documents)
        threshold = min(max(int(heldout_fraction * 2.0**64), int(hashed.min()) + 1), int(hashed.max()))
        self._is_heldout = hashed < np.uint64(threshold)
        self.num_bytes, self.drops = self._store.sidecar["num_bytes"], {}

    def sides(self) -> Iterator[tuple[bool, Chunk]]:
        """(is held out, documents), until all documents have been given once."""
        for chunk in chunks(self._store):
            is_heldout = self._is_heldout[chunk.numbers]
            yield False, chunk.only(~is_heldout)
            yield True, chunk.only(is_heldout)

    def texts(self, heldout: bool) -> Iterator[str]:
        """The text of every document on one side, as its tokens spell it."""
        for side, chunk in self.sides():
            if side == heldout:
                yield from (self._tokenizer.decode(ids) for ids in chunk.documents())
