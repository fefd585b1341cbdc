"""Steps in a pipeline of datatrove give the documents that the stages give."""

import functools
import importlib.util
import json
import sys

import pytest
from corpora import read, run

from mtnlg.core.errors import ConfigError
from mtnlg.factory import datatrove
from mtnlg.factory.tasks.decontaminate import Decontaminate
from mtnlg.factory.text.clean import Clean

TEXT = "Document {} says  what it\u00a0has to say. "
DOCUMENTS = [{"id": str(n), "text": TEXT.format(n) * (1 + n % 7), "source": f"s{n % 2}", "more": [n]} for n in range(100)]
LEAK = "Which of these animals would you expect to find asleep beneath the frozen pond?"
LEAKY = [d | {"text": f"{d['text']} {LEAK} {d['text']}" if n % 10 == 0 else d["text"]} for n, d in enumerate(DOCUMENTS)]


installed = pytest.mark.skipif(not importlib.util.find_spec("datatrove"), reason="datatrove is not installed")


def pipeline(folder, corpus_folder, tasks: int, *steps):
    """(documents, stats) of steps run by datatrove's local executor."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    reader = JsonlReader(str(corpus_folder), glob_pattern="*.jsonl", add_file_path=False)
    writer = JsonlWriter(str(folder / "dt"), compression=None, expand_metadata=True)
    stats = LocalPipelineExecutor([reader, *steps, writer], tasks=tasks, workers=tasks, logging_dir=str(folder / "logs")).run()
    found = [json.loads(line) for path in sorted((folder / "dt").glob("*.jsonl")) for line in path.read_text().splitlines()]
    return found, {name: stat.total for step in stats.stats for name, stat in step.stats.items()}


@installed
@pytest.mark.parametrize("tasks", [1, 2])
def test_clean_gives_the_same_documents(corpus, tmp_path, tasks):
    (tmp_path / "in").mkdir()
    paths = [corpus(DOCUMENTS[half::2], f"in/{half}.jsonl") for half in (0, 1)]
    found, stats = pipeline(tmp_path, tmp_path / "in", tasks, datatrove.Step("clean", Clean(min_chars=100).step))
    tally = run("clean", paths, tmp_path / "out", min_chars=100)
    assert found == read(tmp_path / "out") != []
    assert stats["dropped, too short"] == tally.counts["dropped"]["too short"] > 0
    assert stats["bytes written, s1"] == tally.counts["bytes written"]["s1"]


@installed
def test_decontaminate_gives_the_same_documents_with_the_same_counts(corpus, tmp_path):
    (tmp_path / "in").mkdir()
    path, task = corpus(LEAKY, "in/c.jsonl"), corpus([{"q": LEAK, "often": "has to say document"}], "task.jsonl")
    options = {"against": (task,), "min_words": 4, "surround_chars": 10, "min_chars": 20, "common_times": 11}
    run("decontaminate", path, tmp_path / "out", **options)
    make_step = functools.partial(Decontaminate(**options).step, str(tmp_path / "out" / "counts"))
    found, _ = pipeline(tmp_path, tmp_path / "in", 1, datatrove.Step("decontaminate", make_step))
    assert found == read(tmp_path / "out")
    assert sum("#" in document["id"] for document in found) == 16  # of 8 documents; of 2 too little is left


def test_counts_of_other_ngrams_are_refused(corpus, tmp_path):
    path, task = corpus(LEAKY), corpus([{"q": LEAK}], "task.jsonl")
    run("decontaminate", path, tmp_path / "out", against=(task,))
    assert Decontaminate(against=(task,)).step(tmp_path / "out" / "counts")
    with pytest.raises(ConfigError, match="counts are of other n-grams"):
        Decontaminate(against=(task,), max_words=12).step(tmp_path / "out" / "counts")


def fails():
    return lambda document, tally: [document] if int(document["id"]) % 2 else [{}]


@installed
def test_a_document_that_a_step_cannot_digest_is_set_aside(corpus, tmp_path):
    (tmp_path / "in").mkdir()
    corpus(DOCUMENTS, "in/c.jsonl")
    found, stats = pipeline(tmp_path, tmp_path / "in", 1, datatrove.Step("fails", fails))
    assert found == DOCUMENTS[1::2]
    assert [number for name, number in stats.items() if name.startswith("unreadable, failed: KeyError in stage.py:")] == [50]


def test_without_datatrove_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove.utils.stats", None)
    with pytest.raises(ConfigError, match=r"not installed.*pip install -e '\.\[datatrove\]'"):
        datatrove.Step("clean", Clean().step)
