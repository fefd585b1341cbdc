import json
import random

import hypothesis
import hypothesis.strategies as st
import pytest

from mtnlg.core import schema
from mtnlg.core.errors import DataError
from mtnlg.corpus import split

DATA = schema.Data(heldout_fraction=0.1)


def corpus(path, texts: dict[str, str]) -> str:
    """A `.jsonl` of {id: text}."""
    path.write_text("".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items()))
    return str(path)


def sides(source, data=DATA) -> tuple[list[str], list[str]]:
    """(train texts, held-out texts)."""
    found = ([], [])
    for heldout, text in split.survey(source, data).sides():
        found[heldout].append(text)
    return found


def test_split_is_disjoint_complete_and_about_the_fraction(tmp_path):
    texts = {f"id{i}": f"text {i}" for i in range(2000)}
    train, heldout = sides(corpus(tmp_path / "a.jsonl", texts))
    assert sorted(train + heldout) == sorted(texts.values()) and not set(train) & set(heldout)
    assert 160 < len(heldout) < 240


def test_a_document_keeps_its_side_as_the_corpus_grows_and_moves(tmp_path):
    texts = {f"id{i}": f"text {i}" for i in range(400)}
    _, before = sides(corpus(tmp_path / "a.jsonl", texts))
    more = list((texts | {f"new{i}": f"more {i}" for i in range(400)}).items())
    random.Random(0).shuffle(more)
    _, after = sides(corpus(tmp_path / "b.jsonl", dict(more)))
    assert set(after) & set(texts.values()) == set(before) and len(after) > len(before)


def test_a_larger_fraction_holds_out_more_of_the_same(tmp_path):
    source = corpus(tmp_path / "a.jsonl", {f"id{i}": f"text {i}" for i in range(400)})
    (_, few), (_, many) = sides(source), sides(source, schema.Data(heldout_fraction=0.5))
    assert set(few) < set(many)


def test_split_does_not_depend_on_the_interpreter(tmp_path):
    _, heldout = sides(corpus(tmp_path / "a.jsonl", {f"id{i}": f"{i}" for i in range(40)}))
    assert heldout == ["26", "29", "30"]


@hypothesis.given(st.integers(2, 6), st.sampled_from([1e-9, 0.02, 0.5, 1 - 1e-9]), st.integers(0, 1000))
@hypothesis.settings(max_examples=60, deadline=None)
def test_both_sides_of_few_documents_hold_one(tmp_path_factory, number, fraction, salt):
    source = corpus(tmp_path_factory.mktemp("few") / "a.jsonl", {f"{salt}-{i}": f"text {i}" for i in range(number)})
    train, heldout = sides(source, schema.Data(heldout_fraction=fraction))
    assert train and heldout and len(train) + len(heldout) == number
    if fraction == 1e-9:
        assert len(heldout) == 1
    if fraction == 1 - 1e-9:
        assert len(train) == 1


def test_a_single_document_is_cut_at_a_line(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    (train,), (heldout,) = sides(corpus(tmp_path / "a.jsonl", {"one": text}))
    assert train + heldout == text and train.endswith("\n") and 0.07 < len(heldout) / len(text) < 0.13


@pytest.mark.parametrize("text", ["head\n" + "x" * 1000, "x" * 1000, "☃é" * 20, "ab", "\n\n"])
@pytest.mark.parametrize("fraction", [1e-9, 0.1, 1 - 1e-9])
def test_a_single_document_without_a_line_near_is_cut_inside_it(tmp_path, text, fraction):
    data = schema.Data(heldout_fraction=fraction)
    (train,), (heldout,) = sides(corpus(tmp_path / "a.jsonl", {"one": text}), data)
    assert train and heldout and train + heldout == text
    assert len(heldout) <= 2 * fraction * len(text) + 2


def test_documents_of_one_name_are_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "wiki", "text": "one\\ntwo"}\n' * 2)
    with pytest.raises(DataError, match="all 2 documents have the id 'wiki'.*a.jsonl.*Try: an \"id\" of its own"):
        sides(str(path))


def test_documents_of_one_name_stay_together_beside_another(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "wiki", "text": "one"}\n' * 2 + '{"id": "other", "text": "two"}\n')
    assert sorted(sides(str(path))) == [["one", "one"], ["two"]]


def test_a_document_too_short_to_cut_is_an_error(tmp_path):
    with pytest.raises(DataError, match="too short to hold any of it out.*data.source"):
        sides(corpus(tmp_path / "a.jsonl", {"one": "a"}))


def test_survey_counts(tmp_path):
    found = split.survey(corpus(tmp_path / "a.jsonl", {"a": "é", "b": "x", "c": ""}), DATA)
    assert (found.num_documents, found.num_bytes, found.drops) == (2, 3, {"empty": 1})


def test_sample_is_spread_over_the_whole_of_every_source(tmp_path):
    texts = {name: [f"{name}{i:04}" * 20 for i in range(1000)] for name in "ab"}
    texts["b"] = [text * 3 for text in texts["b"]]
    surveys = [split.survey(corpus(tmp_path / f"{n}.jsonl", {t[:5]: t for t in texts[n]}), DATA) for n in "ab"]
    taken = list(split.sample(surveys, 40_000))
    assert sum(map(len, taken)) == pytest.approx(40_000, rel=0.03)
    for name, expected in (("a", 10_000), ("b", 30_000)):
        held = {text for heldout, text in surveys["ab".index(name)].sides() if heldout}
        mine = [text for text in taken if text.startswith(name)]
        assert sum(map(len, mine)) == pytest.approx(expected, rel=0.12) and not set(mine) & held
        places = [int(text[1:5]) for text in mine]
        assert max(b - a for a, b in zip([0, *places], [*places, 1000], strict=True)) < 40


def test_sample_of_a_small_corpus_is_all_of_its_training_text(tmp_path):
    survey = split.survey(corpus(tmp_path / "a.jsonl", {f"{i}": f"text {i}" for i in range(50)}), DATA)
    assert list(split.sample([survey], 10**6)) == [text for heldout, text in survey.sides() if not heldout]


def test_names_are_unique_and_are_file_names(tmp_path, monkeypatch):
    (tmp_path / "books").mkdir()
    (tmp_path / "books.jsonl.gz").touch()
    (tmp_path / "v1.5").mkdir()
    (tmp_path / "v1.5" / "my.data.txt").touch()
    monkeypatch.chdir(tmp_path)
    given = ["python", "books", "books.jsonl.gz", "BOOKS", "python", "v1.5/", "v1.5/my.data.txt", ".", "/"]
    assert split.names(given) == ["python", "books", "books-2", "BOOKS-3", "python-2", "v1.5", "my.data", tmp_path.name, "text"]
