"""What holds for every stage that reads JSONL."""

import pytest
from corpora import read, run
from test_passes import HOSTILE

from mtnlg.factory.text import quality

GOOD = [
    {"id": f"good-{n}", "text": f"Document {n} of the others says this much, in words of its own: {chr(97 + n) * 9}, and so on."}
    for n in range(20)
]
LINES = [GOOD[0], *HOSTILE, *GOOD[1:]]


@pytest.fixture
def tokenizer(corpus, tmp_path):
    run("train-tokenizer", corpus(GOOD, "good.jsonl"), tmp_path / "tokenizer", kind="byte-level", vocab_size=260)
    return str(tmp_path / "tokenizer")


@pytest.fixture
def task(corpus):
    return corpus([{"text": "a question that no document has, however long one looks for it in there"}], "task.jsonl")


@pytest.mark.parametrize("name", ["clean", "filter", "annotate", "dedup", "decontaminate"])
def test_good_documents_come_through(corpus, tmp_path, task, name):
    options = {"clean": {"min_chars": 1}, "filter": {"languages": "en"}, "decontaminate": {"against": task, "min_chars": 1}}
    tally = run(name, corpus(LINES), tmp_path / "out", **options.get(name, {}))
    assert [document["id"] for document in read(tmp_path / "out")] == [document["id"] for document in GOOD]
    assert tally.counts["unreadable"].total() == len(HOSTILE)


def test_good_documents_are_tokenized(corpus, tmp_path, tokenizer):
    tally = run("tokenize", corpus(LINES), tmp_path / "out", tokenizer=tokenizer)
    assert tally.counts["documents written"].total() == len(GOOD)
    assert tally.counts["unreadable"].total() == len(HOSTILE)


def test_a_tokenizer_is_trained_on_good_documents(corpus, tmp_path):
    tally = run("train-tokenizer", corpus(LINES), tmp_path / "out", kind="byte-level", vocab_size=260)
    assert tally.counts["documents read"].total() == len(GOOD)


def test_a_classifier_is_trained_on_good_documents(corpus):
    many = [{"text": f"{document['text']} {n}"} for n in range(10) for document in GOOD]
    trained = quality.train((corpus([*HOSTILE, *many], "a.jsonl"),), (corpus([*HOSTILE, *many], "b.jsonl"),), 1)
    assert trained.trained + trained.held_out == 2 * len(many) and trained.unreadable == 2 * len(HOSTILE)
