"""Documents are kept by fields, languages, heuristics and quality, and each that is not has its reason."""

import gzip
import json
import math
import pathlib

import numpy as np
import pytest
from corpora import content, read, run
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.cli.data import main
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.factory import folder, registry
from mtnlg.factory.text import filter as filters
from mtnlg.factory.text import language, quality, where

DETECT = language.detector()
DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
LANGUAGES = {
    "en": "The committee will meet again on Thursday to decide whether the old bridge should be repaired or replaced. " * 3,
    "de": "Der Ausschuss wird am Donnerstag wieder zusammentreten und entscheiden, ob die alte Brücke repariert werden soll. " * 3,
    "fr": "Le comité se réunira de nouveau jeudi pour décider si le vieux pont doit être réparé ou remplacé par un autre. " * 3,
    "zh": "委员会将于星期四再次开会，决定旧桥是应该修复还是更换。会议将在市政厅举行，欢迎市民参加。" * 3,
    "ru": "Комитет снова соберётся в четверг, чтобы решить, следует ли отремонтировать старый мост или заменить его. " * 3,
    "ja": "委員会は木曜日に再び会合を開き、古い橋を修理すべきか交換すべきかを決定する予定です。" * 3,
}


def test_planted_languages(corpus, tmp_path):
    documents = [{"id": code, "text": text} for code, text in LANGUAGES.items()]
    tally = run("filter", corpus(documents), tmp_path / "out", languages="en,zh")
    assert [(d["id"], d["language"]) for d in read(tmp_path / "out")] == [("en", "en"), ("zh", "zh")]
    assert tally.counts["language"] == dict.fromkeys(LANGUAGES, 1)
    assert tally.counts["dropped"] == {f"language {code}": 1 for code in LANGUAGES if code not in ("en", "zh")}


def test_a_language_is_told_from_all_of_a_long_text():
    """Negative control: by its beginning it would be another."""
    detect = language.detector()
    assert detect("  123 \n") == language.UNKNOWN
    italian = "Il comitato si riunisce ancora domani per decidere se il vecchio ponte deve essere riparato. " * 3
    assert detect(italian + LANGUAGES["en"] * 30) == "en" and detect(italian) == "it"


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
def test_languages_of_flores():
    """Six sentences at a time, in each of its languages."""
    with gzip.open(DATA / "finetune" / "flores200.dev.jsonl.gz") as file:
        rows = list(map(json.loads, file))[:120]
    named = {"eng_Latn": "en", "zho_Hans": "zh", "zho_Hant": "zh", "deu_Latn": "de", "fra_Latn": "fr", "spa_Latn": "es", "jpn_Jpan": "ja"}
    detect = language.detector()
    for field, code in named.items():
        assert {detect(" ".join(row[field] for row in rows[at : at + 6])) for at in range(0, 120, 6)} == {code}


@given(st.text("ab", max_size=5000))
def test_stretches_are_of_the_text(text):
    found = language.stretches(text)
    assert found == text if len(text) <= language.MAX_CHARS else len(found) == language.MAX_CHARS + 3
    assert all(part in text for part in found.split("\n"))
    assert text.startswith(found.split("\n")[0]) and text.endswith(found.split("\n")[-1])


DOCUMENT = {
    "id": "7",
    "text": "t",
    "source": "a=b",
    "n": 3,
    "f": 0.5,
    "yes": True,
    "tags": ["x", "y", 4],
    "meta": {"set": "ArXiv"},
    "no": None,
}


@pytest.mark.parametrize(
    "condition, holds",
    [
        ("source=a=b", True),
        ("source=a", False),
        ("n=3", True),
        ("n=3.0", True),
        ("n=x", False),
        ("n>3", False),
        ("n>2.99", True),
        ("n<3", False),
        ("n < 3.01", True),
        ("f=0.5", True),
        ("yes=true", True),
        ("yes=1", False),
        ("yes>0", False),
        ("tags=y", True),
        ("tags=z", False),
        ("tags>3", True),
        ("meta.set=ArXiv", True),
        ("meta=ArXiv", False),
        ("source.x=1", False),
        ("no=null", True),
        ("id>6", False),
        ("nothing=", False),
    ],
)
def test_where(condition, holds):
    assert where.parse(condition).holds(DOCUMENT) == holds


def test_where_tells_a_missing_field_from_another_value(corpus, tmp_path):
    tally = run("filter", corpus([DOCUMENT, {"text": "t", "n": 1}, {"text": "t"}]), tmp_path / "out", where="n<9,n>2")
    assert [d["id"] for d in read(tmp_path / "out")] == ["7"]
    assert tally.counts["dropped"] == {"where: not n>2": 1, "where: no field n": 1}


@settings(max_examples=200)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_no_condition_raises(value):
    for condition in ("f=1", "f<1", "f>2", "f.g=a"):
        assert where.parse(condition).holds({"f": value}) in (True, False)


@pytest.mark.parametrize("alpha", [1.0, 3.0, 9.0])
@pytest.mark.parametrize("score", [0.0, 0.3, 0.9, 1.0])
def test_documents_are_kept_as_often_as_the_formula_says(alpha, score):
    """P(Pareto > 1 - s) = (2 - s)^-alpha, within four standard errors over 40,000 ids; numpy's sampler as a witness."""
    number, expected = 40_000, (2 - score) ** -alpha
    kept = np.mean([filters.pareto("s", str(id), alpha) > 1 - score for id in range(number)])
    witness = np.mean(np.random.default_rng(1).pareto(alpha, number) > 1 - score)
    bound = 4 * math.sqrt(expected * (1 - expected) / number) + 1e-12
    assert abs(kept - expected) <= bound and abs(witness - expected) <= bound


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=600), st.integers(0, 3))
def test_every_text_has_a_language_and_a_quality(text, seed):
    classifier = quality.Classifier(np.random.default_rng(seed).normal(size=1 << 20).astype(np.float32), 0.0)
    assert 0 <= classifier(text) <= 1 and DETECT(text) in language.codes() | {language.UNKNOWN}


GOOD = ["The river ran between quiet hills and the old man watched it every evening from his garden.", "She read the letter again."]
BAD = ["Click here buy cheap pills online now best price free shipping!!! casino bonus", "win win win money fast click"]


def kind(texts, name, number=150):
    return [{"id": f"{name}{n}", "text": f"{texts[n % 2]} {name}{n}"} for n in range(number)]


@pytest.fixture
def classifier(corpus, tmp_path, capsys):
    paths = corpus(kind(GOOD, "g"), "good.jsonl"), corpus([*kind(BAD, "b"), b"{"], "bad.jsonl")
    assert main(["train-quality", f"--input={paths[0]}", f"--negative={paths[1]}", f"--output={tmp_path / 'quality'}"]) == 0
    assert "accuracy 1.0000, AUC 1.0000" in capsys.readouterr().err
    said = folder.read(tmp_path / "quality")
    assert said["tally"]["counts"]["documents"]["unreadable"] == 1 and [part["name"] for part in said["parts"]] == ["quality.npz"]
    return str(tmp_path / "quality")


def test_quality_is_learnt_and_kept_by(classifier, corpus, tmp_path):
    scores = quality.Classifier.load(classifier)
    assert scores(GOOD[0] + " unseen") > 0.8 and scores(BAD[0] + " unseen") < 0.2
    assert scores("") == pytest.approx(0.5, abs=0.3)
    path = corpus([*kind(GOOD, "g"), *kind(BAD, "b")])
    for workers in (1, 2, 4):
        tally = run("filter", path, tmp_path / str(workers), num_workers=workers, part_bytes=5000, quality=classifier)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    kept = read(tmp_path / "1")
    assert all(d["quality"] == scores(d["text"]) for d in kept)
    assert [d["id"] for d in kept] == [
        d["id"] for d in [*kind(GOOD, "g"), *kind(BAD, "b")] if filters.pareto("corpus", d["id"], 3.0) > 1 - scores(d["text"])
    ]
    assert sum(d["id"][0] == "g" for d in kept) > 100 > 40 > sum(d["id"][0] == "b" for d in kept) > 5
    assert tally.counts["quality kept"].total() == len(kept)


def test_another_classifier_is_another_stage(classifier, corpus, tmp_path):
    path = corpus(kind(GOOD, "g"))
    run("filter", path, tmp_path / "out", quality=classifier)
    quality.Classifier(np.zeros(1 << 20, np.float32), 0.0).save(f"{classifier}/quality.npz")
    with pytest.raises(ConfigError, match="quality .* there, .* now"):
        run("filter", path, tmp_path / "out", quality=classifier)


def test_held_out_documents_are_not_learnt_from(corpus):
    """Words that mean nothing can be learnt by heart, and that does not help with what is held out."""
    words = [f"w{number}" for number in range(5000)]
    random = np.random.default_rng(0)
    texts = [{"text": " ".join(random.choice(words, 20))} for _ in range(1000)]
    found = quality.train((corpus(texts[:500], "a.jsonl"),), (corpus(texts[500:], "b.jsonl"),), 5)
    assert found.held_out > 60 and 0.3 < found.auc < 0.7
    learnt = np.mean([found.classifier(d["text"]) > 0.5 for d in texts[:500]])
    assert learnt > 0.9


def test_paths_take_turns_and_the_fewer_end():
    assert list(quality._in_turns([iter("abc"), iter("1"), iter("xy")])) == list("a1xbyc")


def test_features_are_those_of_words_and_pairs():
    at, values = quality.features("a b a b")
    assert at.size == 4 and sorted(values) == pytest.approx(np.array([1, 2, 2, 2]) / math.sqrt(13))
    assert quality.features("")[0].size == 0


@pytest.mark.parametrize(
    "options, error, what",
    [
        ({"languages": "english"}, ConfigError, "no language 'english'"),
        ({"rules": "gophre"}, ConfigError, "Try: gopher"),
        ({"where": "source"}, ConfigError, "no condition"),
        ({"where": "n<x"}, ConfigError, "no number"),
        ({"alpha": 0, "quality": "q.npz"}, ConfigError, "alpha=0.0 is not above 0"),
        ({}, ConfigError, "no condition is named"),
        ({"alpha": 2, "languages": "en"}, ConfigError, "alpha=2.0 without quality"),
        ({"quality": "nowhere.npz"}, MissingInput, "train-quality"),
        ({"quality": __file__}, DataError, "no classifier"),
    ],
)
def test_wrong_options(options, error, what):
    with pytest.raises(error) as raised:
        registry.make("filter", options)
    assert what in str(raised.value)


def test_rules_shorten_and_count(corpus, tmp_path):
    text = "Home\nHe came to see us.\nThen he left us all!\nWho was it that came?"
    tally = run("filter", corpus([{"text": text}, {"text": "{"}]), tmp_path / "out", rules="c4")
    assert [d["text"] for d in read(tmp_path / "out")] == [text[5:]]
    assert tally.counts["changed"] == {"c4": 1} and tally.counts["lines left out"] == {"c4: no end of a sentence": 1}
    assert tally.counts["dropped"] == {"c4: a curly bracket": 1}


def test_sources_whose_ids_restart_draw_other_numbers():
    assert len({filters.pareto(source, "1", 3.0) for source in "abc"}) == 3


def test_too_few_documents_to_tell_how_good_a_classifier_is(corpus):
    with pytest.raises(DataError, match="too few documents"):
        quality.train((corpus([{"text": "a good one"}], "a.jsonl"),), (corpus([{"text": "a bad one"}], "b.jsonl"),), 1)
