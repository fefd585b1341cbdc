"""Trains a tokenizer on a sample of documents: some of every part of the inputs, chosen by their numbers alone."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

from mtnlg.core import files
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.core.schema import key
from mtnlg.corpus import sources
from mtnlg.data import byte_level, order, training
from mtnlg.factory import documents, folder, passes, stage
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Batch, Machine, Result
from mtnlg.factory.tally import Tally

KINDS = ("bpe", "unigram", "byte-level")

_PIECE_CHARS = 20_000
_MORE = 2  # times train_bytes: chance takes a little less or more than is expected, and JSON is longer than its text


@dataclass(frozen=True)
class TrainTokenizer:
    """Trains a tokenizer on a sample of the documents: tokenizer.model, or vocab.json and merges.txt for byte-level BPE."""

    vocab_size: int = key(32_000, "tokens, with the end of document")
    kind: str = key("bpe", "SentencePiece `bpe` or `unigram`, which give any text back; `byte-level` BPE as GPT-2's", KINDS)
    train_bytes: int = key(10_000_000, "text that is looked at, at most")

    def check(self) -> None:
        if self.train_bytes < 1:
            raise ConfigError(f"train_bytes={self.train_bytes} is out of range", "--train_bytes", "1 or more bytes")
        if self.kind == "byte-level" and self.vocab_size < 257:
            raise ConfigError(f"vocab_size {self.vocab_size} has no room for the bytes", "--vocab_size", "257 or more")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises ConfigError, DataError (a text too small for vocab_size, naming one that works), and what `passes.run` raises."""
        self.check()
        path, read = pathlib.Path(output), Inputs(inputs)
        what = {"stage": "train-tokenizer", "options": dataclasses.asdict(self)}
        num_bytes = sum(file.path.stat().st_size for file in read.files)  # of packed ones less than of their text: more is taken
        share = min(_MORE * self.train_bytes / max(num_bytes, 1), 1)
        finish = functools.partial(self._train, path)
        return passes.run(path, what, read, _Sample(share), ".sample" + stage.SUFFIX, machine, finish=finish)

    def _train(self, path: pathlib.Path, parts: list[dict]) -> list[dict]:
        try:
            made = self._made(path, _evenly([path / part["name"] for part in parts], self.train_bytes))
        except DataError:
            (path / folder.JOURNAL).unlink()  # so that another vocab_size may be given there
            raise
        for name, content in made.items():
            files.write_atomic(path / name, content)
        return [folder.part(name, hashlib.sha256(content).hexdigest(), len(content)) for name, content in made.items()]

    def _made(self, path: pathlib.Path, texts: Iterator[str]) -> dict[str, bytes]:
        """{name: content} of the tokenizer's files."""
        if self.kind == "byte-level":
            return dict(zip(("vocab.json", "merges.txt"), byte_level.train(texts, str(path), self.vocab_size), strict=True))
        options = {"kind": self.kind, "vocab_size": self.vocab_size, "max_bytes": self.train_bytes, "option": "--vocab_size"}
        return {"tokenizer.model": training.train_model(texts, str(path), **options)}


@dataclass(frozen=True)
class _Sample:
    """Of a batch: about `share` of its text, in pieces of at most _PIECE_CHARS, by a hash of their documents' and their own numbers."""

    share: float

    def __call__(self, batch: Batch) -> Result:
        import zstandard

        tally, lines = Tally(), []
        for number, record in enumerate(batch.records, batch.first):
            with stage.setting_aside(tally, record.where, record.content):
                document = documents.parse(record)
                taken = [piece for place, piece in enumerate(_pieces(document["text"])) if order.derive(number, place) < self.share * 2**64]
                lines += [documents.line({"text": piece}) for piece in taken]
                for table, texts in (("bytes read", [document["text"]]), ("bytes sampled", taken)):
                    tally.count(table, document["source"], sum(len(text.encode()) for text in texts))
                tally.count("documents read", document["source"])
        return Result(zstandard.compress(b"".join(lines), 3) if lines else b"", tally)


def _pieces(text: str) -> list[str]:
    return [text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS)]


def _evenly(paths: list[pathlib.Path], max_bytes: int) -> Iterator[str]:
    """About max_bytes of the texts in these files, evenly from the first to the last."""
    share = max_bytes / max(sum(len(text.encode()) for text in _texts(paths)), 1)
    seen = taken = 0
    for text in _texts(paths):
        size = len(text.encode())
        seen += size
        if taken < share * seen:
            taken += size
            yield text


def _texts(paths: list[pathlib.Path]) -> Iterator[str]:
    for path in paths:
        with sources.opened(path) as file:
            for line in file:
                yield json.loads(line)["text"]
