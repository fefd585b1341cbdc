"""A small corpus of two sources, and a tokenizer trained on one like it."""

import json
import pathlib
import random

import pytest

from mtnlg.core import schema
from mtnlg.corpus.build import prepare

WORDS = ["licht", "☃", "naïve", "fold(x)", "=", "12,\n", "\t\r\n", "\0", "▁▁a", "<|endoftext|>"] + [
    a + b + c for a in ("th", "gr", "st", "m", "fl") for b in ("e", "au", "o", "i") for c in ("n", "ck", "", "ly", "ss")
]


class Corpus:
    """`lined.jsonl` and a folder `folded` of `.txt`, of 30 documents each; texts: {source: its texts}."""

    words = WORDS

    def __init__(self, folder: pathlib.Path):
        chance = random.Random(0)
        texts = [" ".join(chance.choices(WORDS, k=60)) + f" {i}" for i in range(60)]
        self.lined, self.folded = folder / "lined.jsonl", folder / "folded"
        self.texts = {str(self.lined): texts[:30], str(self.folded): texts[30:]}
        self.folded.mkdir(parents=True)
        self.lined.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:30]))
        for i, text in enumerate(texts[30:]):
            (self.folded / f"{i:03}.txt").write_bytes(text.encode())

    def config(self, vocab_size=320, **data) -> schema.Config:
        """A config that reads this corpus, a fifth of it held out; data: other `data.*` keys."""
        data = {"source": tuple(self.texts), "heldout_fraction": 0.2} | data
        return schema.Config(model=schema.Model(vocab_size=vocab_size), data=schema.Data(**data))


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return Corpus(tmp_path / "corpus")


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    """A tokenizer of 320 tokens."""
    folder = tmp_path_factory.mktemp("trained")
    return str(prepare(Corpus(folder / "corpus").config(), folder / "out", progress=False).tokenizer)


@pytest.fixture
def contents():
    """A function: each file of a directory, with its time of change."""
    return lambda directory: {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}
