"""Texts of evaluation tasks leave a corpus, whatever their case and punctuation, and nothing else changes."""

import gzip
import itertools
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import plainly
import pytest
from corpora import content, read, run
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import ConfigError, DataError, MissingInput

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
FILLER = ("the", "quiet", "river", "ran", "past", "old", "stone", "mills", "while", "people", "talked", "of", "bread", "and", "cloth")


def filler(seed: int, sentences: int = 20) -> str:
    """Sentences that share no eight words in a row with anything below."""
    numbers = random.Random(seed)
    return " ".join(" ".join(numbers.choices(FILLER, k=9)).capitalize() + "." for _ in range(sentences))


PASSAGES = [
    "Which of these four animals would you expect to find asleep beneath the frozen pond all winter long?",
    "He counted nine copper coins, kept two.",  # too short to be one
    "A farmer sold twelve eggs to each neighbour on Sunday",  # shorter than 13 words
    "在下面的四个句子里请选出没有语病的一项然后写在答题卡上",
]
ID = "an id of a lot of words that is no text at all is this one"
TASK = [{"id": ID, "question": {"parts": PASSAGES[:2]}}, {"choices": PASSAGES[2:], "task_id": ID}]
LEAKS = [PASSAGES[0], PASSAGES[2], PASSAGES[3]]


def decontaminate(inputs, against, output, **options):
    return run("decontaminate", inputs, output, **{"against": (str(against),), **options})


def test_planted_passages_are_removed(corpus, tmp_path):
    """In any case and punctuation, at the beginning, in the middle and at the end, several in a document."""
    spelled = [leak for text in LEAKS for leak in (text, text.upper(), "\n".join(re.findall(r"\w+", text)), text.replace(" ", " -- "))]
    before, after = filler(1), filler(2)
    texts = [text for leak in spelled for text in (f"{leak}. {after}", f"{before} {leak}", f"{before} “{leak}” {after}", leak)]
    texts.append(". ".join([before, LEAKS[0], filler(3), LEAKS[1], filler(4), LEAKS[2], after]))
    documents = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    tally = decontaminate(corpus(documents), corpus(TASK, "task.jsonl"), tmp_path / "out", common_times=100)
    found = read(tmp_path / "out")
    leaked = plainly.ngrams_of(PASSAGES, 8, 13)
    assert not any(plainly.places(document["text"], leaked) for document in found)
    assert {document["id"].partition("#")[0] for document in found} == {f"d{n}" for n in range(len(texts)) if n % 4 != 3}
    assert [d["id"] for d in found][-4:] == [f"d{len(texts) - 1}#{n}" for n in (1, 2, 3, 4)]
    assert tally.counts["dropped"] == {"too little left": len(spelled)}
    assert tally.counts["changed"] == {"trimmed": 2 * len(spelled), "split": len(spelled) + 1}
    assert tally.counts["documents with n-grams"] == {"task": len(texts)}
    assert tally.samples["removed, task"][0]["ngram"] == "which of these four animals would you expect to find asleep beneath the"


def test_a_document_without_a_match_does_not_change_by_one_byte(corpus, tmp_path):
    near = PASSAGES[0].replace("animals", "beasts").replace("pond", "lake")
    documents = [
        {"id": "1", "text": "  " + filler(1) + " \n\t\u200b", "source": "s", "more": [1.5, None, {"text": "Ünï"}]},
        {"id": "2", "text": PASSAGES[1] + " " + near, "source": "s"},  # negative control: short passages and near ones stay
        {"id": "3", "text": "", "source": "s"},
        {"id": "4", "text": ID, "source": "s"},
    ]
    tally = decontaminate(corpus(documents), corpus(TASK, "task.jsonl"), tmp_path / "out")
    assert read(tmp_path / "out") == documents
    assert not {"changed", "dropped", "unreadable"} & set(tally.counts)


def test_fields_beside_the_text_stay(corpus, tmp_path):
    document = {"id": "d", "text": f"{filler(1)} {LEAKS[0]} {filler(2)}", "source": "s", "language": "en"}
    decontaminate(corpus([document]), corpus(TASK, "task.jsonl"), tmp_path / "out")
    assert [d | {"text": ""} for d in read(tmp_path / "out")] == [document | {"id": f"d#{n}", "text": ""} for n in (1, 2)]


@pytest.mark.parametrize("times", [9, 10])
def test_what_occurs_often_is_ignored(corpus, tmp_path, times):
    documents = [{"id": str(n), "text": f"{filler(n)} {LEAKS[1]}. {filler(100 + n)}"} for n in range(times)]
    decontaminate(corpus(documents), corpus(TASK, "task.jsonl"), tmp_path / "out")
    assert (len(read(tmp_path / "out")) == times) == (times >= 10)


@pytest.mark.parametrize("cuts", [9, 10])
def test_more_than_ten_pieces_are_too_many(corpus, tmp_path, cuts):
    text = f" {LEAKS[1]}. ".join(filler(n) for n in range(cuts + 1))
    tally = decontaminate(corpus([{"id": "d", "text": text}]), corpus(TASK, "task.jsonl"), tmp_path / "out", common_times=100)
    assert len(read(tmp_path / "out")) == (10 if cuts == 9 else 0)
    assert tally.counts.get("dropped", {}) == ({} if cuts == 9 else {"too many pieces": 1})


TOKENS = st.sampled_from(["a ", "A-", "b ", "B. ", "ß", "İ ", "中", "か", "x_1\n", " ", ". ", "。"])
TEXTS = st.lists(TOKENS, max_size=50).map("".join)
PARTS = st.lists(TOKENS, min_size=2, max_size=6).map("".join)


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=3, max_size=12), st.lists(PARTS, min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 4))
def test_it_is_what_the_definition_says(texts, passages, around, common_times):
    small = {"min_chars": 3, "max_pieces": 2, "common_times": common_times}
    expected = plainly.decontaminated(texts, passages, least=2, most=4, around=around, **small)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "c.jsonl").write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
        (path / "t.jsonl").write_text(json.dumps([*passages, "never in the corpus", "ever"]))
        decontaminate(str(path / "c.jsonl"), path / "t.jsonl", path / "out", min_words=2, max_words=4, surround_chars=around, **small)
        found = {int(n): [d["text"] for d in group] for n, group in itertools.groupby(read(path / "out"), lambda d: d["id"].split("#")[0])}
    assert [found.get(n, []) for n in range(len(texts))] == expected


def test_a_short_ngram_inside_a_long_one_does_not_end_it(corpus, tmp_path):
    task = corpus([{"long": "a b c d", "short": "b c"}], "task.jsonl")
    options = {"min_words": 2, "max_words": 4, "surround_chars": 0, "min_chars": 1}
    decontaminate(corpus([{"text": "One. Two a b c. D three. Four. \n"}]), task, tmp_path / "out", **options)
    assert [d["text"] for d in read(tmp_path / "out")] == ["One.", "Four. \n"]


MANY = [{"id": str(n), "text": f"{filler(n)} {LEAKS[n % 3] if n % 5 == 0 else ''} {filler(1000 + n)}"} for n in range(60)]


def many(path, task, output, **options):
    return decontaminate(path, task, output, part_bytes=20_000, common_times=5, **options)


def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path):
    path, task = corpus(MANY), corpus(TASK, "task.jsonl")
    tallies = [many(path, task, tmp_path / str(n), num_workers=n).as_json() for n in (1, 2, 4)]
    assert tallies[0] == tallies[1] == tallies[2]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    assert content(tmp_path / "1" / "counts") == content(tmp_path / "4" / "counts")
    assert len(content(tmp_path / "1")) > 3 and tallies[0]["counts"]["changed"]


KILLED = """
import os, sys
from mtnlg.factory import folder, registry
from mtnlg.factory.passes import Machine

add, left = folder.Journal.add, int(sys.argv[4])
def add_or_die(journal, part):
    global left
    if not left:
        os.kill(os.getpid(), 9)
    left -= 1
    add(journal, part)
folder.Journal.add = add_or_die
stage = registry.make("decontaminate", {"against": (sys.argv[2],), "common_times": 5})
stage.run((sys.argv[1],), sys.argv[3], Machine(1, 20_000, progress=False))
"""


@pytest.mark.parametrize("after", [1, 7])
def test_killed_in_either_pass_it_ends_in_the_same_bytes(corpus, tmp_path, after):
    path, task = corpus(MANY), corpus(TASK, "task.jsonl")
    whole = many(path, task, tmp_path / "whole").as_json()
    num_parts = len(content(tmp_path / "whole"))
    assert num_parts == 6
    killed = subprocess.run([sys.executable, "-c", KILLED, path, task, str(tmp_path / "out"), str(after)])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "out" / "counts" / "stage.json").exists() == (after > num_parts)
    assert many(path, task, tmp_path / "out").as_json() == whole
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_ended_one_is_used_as_it_is_without_its_counts(corpus, tmp_path):
    path, task = corpus(MANY), corpus(TASK, "task.jsonl")
    whole = many(path, task, tmp_path / "out").as_json()
    assert whole["counts"]["n-grams to remove"]["task"] > 0
    shutil.rmtree(tmp_path / "out" / "counts")
    assert many(path, task, tmp_path / "out").as_json() == whole
    assert not (tmp_path / "out" / "counts").exists()
    with pytest.raises(ConfigError, match="min_chars 200 there, 100 now"):
        many(path, task, tmp_path / "out", min_chars=100)
    assert not (tmp_path / "out" / "counts").exists()


def test_another_task_in_the_same_folder_is_refused(corpus, tmp_path):
    path = corpus(MANY)
    decontaminate(path, corpus(TASK, "task.jsonl"), tmp_path / "out")
    with pytest.raises(ConfigError, match="something else is written there"):
        decontaminate(path, corpus(TASK[:1], "task.jsonl"), tmp_path / "out")


def test_tasks_that_cannot_be_read_are_an_error(corpus, tmp_path):
    path = corpus(MANY)
    with pytest.raises(ConfigError, match="nothing to compare with .--against"):
        run("decontaminate", path, tmp_path / "out")
    with pytest.raises(MissingInput, match="no file or folder .*--against"):
        decontaminate(path, tmp_path / "none.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match=r"not JSON.*task:2"):
        decontaminate(path, corpus([TASK[0], b"{", TASK[1]], "task.jsonl"), tmp_path / "out")
    with pytest.raises(DataError, match="no text there has 8 words"):
        decontaminate(path, corpus([{"question": PASSAGES[1]}], "task.jsonl"), tmp_path / "out")
    with pytest.raises(ConfigError, match="1 <= min_words <= max_words"):
        decontaminate(path, corpus(TASK, "task.jsonl"), tmp_path / "out", min_words=14)
    with pytest.raises(ConfigError, match="--surround_chars"):
        decontaminate(path, corpus(TASK, "task.jsonl"), tmp_path / "out", surround_chars=-1)


def test_hostile_documents_are_set_aside_once(corpus, tmp_path):
    tally = decontaminate(corpus([MANY[1], b"{", b'{"text": "\xff"}', MANY[2]]), corpus(TASK, "task.jsonl"), tmp_path / "out")
    assert [d["id"] for d in read(tmp_path / "out")] == ["1", "2"]
    assert tally.counts["unreadable"] == {"not JSON": 1, "invalid utf-8": 1}


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
def test_every_task_of_the_shared_data_leaves_real_text(corpus, tmp_path):
    """The longest passage of each task is planted in a text of its own; those texts come back without, all others as they were."""
    paths = sorted((DATA / "eval").glob("*.jsonl.gz"))
    records = [_first_records(path) for path in paths]
    tasks = tuple(corpus(first, path.name.removesuffix(".gz")) for path, first in zip(paths, records, strict=True))
    passages = [[text for record in first for text in _texts(record)] for first in records]
    planted = [max(texts, key=len) for texts in passages]
    with gzip.open(DATA / "corpora" / "openai_evals_owt_wiki_pip_en.jsonl.gz", "rt") as file:
        texts = [text for text in (json.loads(line)["text"] for line in file) if len(text) > 800][: 3 * len(tasks)]
    documents = []
    for number, text in enumerate(texts):
        at = text.find(" ", 400)
        leak = planted[number // 2] if number % 2 == 0 and number // 2 < len(tasks) else ""
        documents.append({"id": str(number), "text": f"{text[:at]} {leak} {text[at:]}" if leak else text, "source": "web"})
    tally = run("decontaminate", corpus(documents), tmp_path / "out", against=tasks, common_times=1000)
    found = read(tmp_path / "out")
    leaked = plainly.ngrams_of([text for texts in passages for text in texts], 8, 13)
    assert not any(_has_one(document["text"], leaked) for document in found)
    hit = {document["id"] for document in documents if _has_one(document["text"], leaked)}
    assert {str(2 * n) for n, passage in enumerate(planted) if len(plainly.words(passage)) >= 8} <= hit
    assert len(hit) == tally.counts["changed"].total() + tally.counts["dropped"].total() < 2 * len(tasks)
    assert [d for d in found if "#" not in d["id"]] == [d for d in documents if d["id"] not in hit]


def _first_records(path: pathlib.Path) -> list:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in itertools.islice(file, 20)]


def _texts(value) -> list[str]:
    """Of a record at any depth, but for ids."""
    if isinstance(value, dict):
        return [text for key, inner in value.items() if key != "id" and not key.endswith("_id") for text in _texts(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _has_one(text: str, ngrams: set[tuple]) -> bool:
    split = [word for word, _, _ in plainly.words(text)]
    return any(tuple(split[at : at + n]) in ngrams for n in range(8, 14) for at in range(len(split) - n + 1))
