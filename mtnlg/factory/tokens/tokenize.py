"""Documents to token ids: one store in Megatron's layout for all inputs, and the tokenizer beside it, for training to read.

Workers write parts: for each batch the lengths of its documents and their ids. When all are there, they are joined into the store.
"""

import functools
import hashlib
import json
import pathlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.core.schema import key
from mtnlg.corpus import tokens
from mtnlg.data import store
from mtnlg.data import tokenizer as tokenizers
from mtnlg.factory import documents, folder, passes, stage
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Batch, Machine, Result
from mtnlg.factory.tally import Tally

_HEAD = struct.Struct("<QQQ")  # of a batch: documents, ids, bytes of text


@dataclass(frozen=True)
class Tokenize:
    """Tokenises documents into one store (.bin and .idx of Megatron, .json beside them); each document ends with the end of document."""

    tokenizer: str = key("", "a .model, a tokenizer.json, or a folder with one of them or with vocab.json and merges.txt")

    def check(self) -> None:
        if not self.tokenizer:
            raise ConfigError("no tokenizer is named", "--tokenizer", "--tokenizer=PATH, perhaps of python -m mtnlg data train-tokenizer")
        if not pathlib.Path(self.tokenizer).exists():
            raise MissingInput(f"there is no tokenizer {self.tokenizer!r}", "--tokenizer", "a path that exists")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises ConfigError, and what `tokenizer.load` and `passes.run` raise."""
        self.check()
        folder.require_ended(pathlib.Path(self.tokenizer))
        path, tokenizer = pathlib.Path(output), tokenizers.load(self.tokenizer)
        named = {"tokenizer": pathlib.Path(self.tokenizer).resolve().name}  # known by its content, wherever it lies
        what = {"stage": "tokenize", "options": named, "tokenizer": {"sha256": tokenizer.sha256}}
        prepare = functools.partial(_save, tokenizer, path)
        finish = functools.partial(_join, path, tokenizer)
        work = _Work(path / tokens.TOKENIZER)
        return passes.run(path, what, Inputs(inputs), work, tokens.PART_SUFFIX, machine, prepare, finish)


def _save(tokenizer: tokenizers.Tokenizer, path: pathlib.Path) -> Tally:
    tokenizer.save(path / tokens.TOKENIZER)
    return Tally()


class _Work:
    """Of a batch: _HEAD, lengths (int32), ids (as the store has them)."""

    def __init__(self, tokenizer: pathlib.Path):
        self._path = tokenizer

    @functools.cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.load(self._path)

    def __call__(self, batch: Batch) -> Result:
        tally, read = Tally(), []
        for record in batch.records:
            with stage.setting_aside(tally, record.where, record.content):
                read.append((record, documents.parse(record)))
        _count(tally, "read", [document for _, document in read])
        written, arrays = self._encoded(read, tally)
        dtype = np.dtype(store.token_dtype(self._tokenizer.vocab_size))
        end = np.array([self._tokenizer.eod_id], dtype)
        ended = [piece for ids in arrays for piece in (ids, end)]
        ids = np.concatenate(ended, dtype=dtype, casting="unsafe") if ended else np.empty(0, dtype)
        lengths = np.array([len(each) + 1 for each in arrays], "<i4")
        num_bytes = _count(tally, "written", [document for _, document in written], lengths)
        for power, number in zip(*np.unique(np.frexp(lengths)[1], return_counts=True), strict=True):
            tally.count("tokens per document", f"{1 << int(power) - 1:9d}", int(number))
        return Result(_HEAD.pack(len(lengths), ids.size, num_bytes) + lengths.tobytes() + ids.tobytes(), tally)

    def _encoded(self, read: list, tally: Tally) -> tuple[list, list[np.ndarray]]:
        """(what could be encoded, the ids). All at once; one by one where that fails."""
        try:
            return read, self._tokenizer.encode_arrays([document["text"] for _, document in read])
        except Exception:
            kept, arrays = [], []
            for record, document in read:
                with stage.setting_aside(tally, record.where, record.content):
                    arrays += self._tokenizer.encode_arrays([document["text"]])
                    kept.append((record, document))
            return kept, arrays


def _count(tally: Tally, side: str, documents: list[dict], lengths: np.ndarray | None = None) -> int:
    """Counts documents, bytes and, where their lengths are given, tokens by source; gives the bytes. In arrays: a batch has thousands."""
    sources = np.array([document["source"] for document in documents], object)
    sizes = np.array([len(document["text"].encode()) for document in documents], np.int64)
    for source in dict.fromkeys(sources.tolist()):
        mine = sources == source
        tally.count(f"documents {side}", source, int(mine.sum()))
        tally.count(f"bytes {side}", source, int(sizes[mine].sum()))
        if lengths is not None:
            tally.count(f"tokens {side}", source, int(lengths[mine].sum()))
    return int(sizes.sum())


def _join(path: pathlib.Path, tokenizer: tokenizers.Tokenizer, parts: list[dict]) -> list[dict]:
    prefix = path / tokens.NAME
    with tokens.writer(prefix, tokenizer) as writer:
        for part in parts:
            for lengths, ids, num_bytes in _batches(path / part["name"], store.token_dtype(tokenizer.vocab_size)):
                writer.extend(ids, lengths, num_bytes)
    return listed(path)


def listed(path: pathlib.Path) -> list[dict]:
    """What a folder of tokens holds, for `stage.json`."""
    prefix = path / tokens.NAME
    sidecar = json.loads(store.paths(prefix)[2].read_bytes())
    known = {f"{tokens.NAME}.{kind}": sidecar[f"{kind}_sha256"] for kind in ("bin", "idx")}
    others = [store.paths(prefix)[2], *sorted((path / tokens.TOKENIZER).iterdir())]
    known |= {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in others}
    return [folder.part(name, digest, (path / name).stat().st_size) for name, digest in known.items()]


def _batches(path: pathlib.Path, dtype) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    with open(path, "rb") as file:
        while head := file.read(_HEAD.size):
            num_documents, num_ids, num_bytes = _HEAD.unpack(head)
            lengths, ids = (np.frombuffer(file.read(n * np.dtype(d).itemsize), d) for n, d in ((num_documents, "<i4"), (num_ids, dtype)))
            if (len(lengths), len(ids)) != (num_documents, num_ids):
                raise DataError("the part is cut off", str(path), f"delete {path.parent} and start again")
            yield lengths, ids, num_bytes
