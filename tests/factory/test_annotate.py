"""Fields beside the texts: what they say, that filters can use them, and that a user can add others."""

import gzip
import json
import pathlib
import re
import sys
import types

import growth
import numpy as np
import pytest
from corpora import content, read, run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_filter import LANGUAGES

from benchmarks import tags as benchmark
from mtnlg.core.errors import ConfigError, MissingInput
from mtnlg.factory import folder, passes, registry
from mtnlg.factory.passes import Machine, Result
from mtnlg.factory.tally import Tally
from mtnlg.factory.text import annotate, hanta, quality, tags

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
PIECES = ["a", "N", "n't", " ", "'", "’s", "中", "文", "ａ", ".", "!", "\n", "-", ",", "x/y", "3.1", "\u0301", "ـ"]
WORDS = LANGUAGES["en"].split() + ["Xyzzyish", "runs", "Google", "1998", "…", "blorbed", "(", ")", "—", "中", "e.g", "that", "That", "set"]
ENGLISH, CHINESE = tags.English(), tags.Chinese()
HANTA = hanta.HanTa()


def test_english_words_and_tags():
    text = "I don't think Mary's 3 dogs can’t swim.\nWe'll see 1,000 well-known cats!"
    words, found = ENGLISH.tagged(text)
    assert words == ENGLISH.words(text)
    assert words[:5] == ["I", "do", "n't", "think", "Mary"] and words[5:8] == ["'s", "3", "dogs"] and "well-known" in words
    told = dict(zip(words, found, strict=True))
    assert (told["I"], told["n't"], told["Mary"], told["dogs"], told["3"], told["."]) == ("PNP", "XX0", "NP0", "NN2", "CRD", "PUN")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=25))
def test_english_tags_are_those_of_hanta(sentence):
    """Its own search over the same model."""
    assert HANTA(sentence) == HANTA._model.tag_sent(sentence, taglevel=0)


def test_chinese_words_and_tags():
    words, found = CHINESE.tagged("他在北京大学学习中文。\n 很 好！")
    assert list(zip(words, found, strict=True))[:3] == [("他", "r"), ("在", "p"), ("北京大学", "nt")]
    assert "".join(words) == "他在北京大学学习中文。很好！"
    assert CHINESE.words("他在北京大学学习中文。\n 很 好！") == words


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@example("x" * 1000)
@example(". " * 300)
@example("\u0301")
def test_no_tagger_raises_and_every_word_has_a_tag(text):
    for tagger in (ENGLISH, CHINESE):
        words, found = tagger.tagged(text)
        assert len(words) == len(found) and all(found) and not any(map(str.isspace, words))
        assert re.sub(r"\s", "", "".join(words)) == re.sub(r"\s", "", text)


@pytest.mark.parametrize("unit", ["a", "n'", "'", "a.", "-", "n't", "\u00b7"])
def test_time_of_english_words_grows_with_length_alone(unit):
    growth.require_linear(ENGLISH.words, growth.repeated(unit), 50_000)


@pytest.mark.parametrize("unit", ["中文", "很", "\n", "a", "，", "的。"])
def test_time_of_chinese_tags_grows_with_length_alone(unit):
    growth.require_linear(CHINESE.tagged, growth.repeated(unit), 8_000)


@pytest.mark.parametrize("unit", ["中文", "很", "\n", "a", "，", "的。"])
def test_nothing_of_a_long_chinese_text_is_lost(unit):
    words, _ = CHINESE.tagged(unit * (120_000 // len(unit)))
    assert sum(map(len, words)) == (unit != "\n") * 120_000


def test_fields_tables_and_any_number_of_workers(corpus, tmp_path):
    documents = [{"id": f"{code}{n}", "text": f"{text} {n}"} for n in range(20) for code, text in LANGUAGES.items()]
    options = {"with": "language,tags,words"}
    for workers in (1, 2):
        tally = run("annotate", corpus(documents), tmp_path / str(workers), num_workers=workers, part_bytes=5000, **options)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    found = {d["id"]: d for d in read(tmp_path / "1")}
    assert [found[d["id"]]["text"] for d in documents] == [d["text"] for d in documents]
    for code in LANGUAGES:
        assert found[f"{code}7"]["language"] == code
        assert ("tags" in found[f"{code}7"], "words" in found[f"{code}7"]) == ((True, True) if code in ("en", "zh") else (False, False))
    assert tally.counts["language"] == dict.fromkeys(LANGUAGES, 20)
    assert tally.counts["words en"]["committee"] == LANGUAGES["en"].count("committee") * 20  # once, though words and tags are both named
    assert sum(tally.counts["tags zh"].values()) == sum(len(d["tags"]) for d in found.values() if d["id"][:2] == "zh")
    run("filter", str(tmp_path / "1"), tmp_path / "kept", where="language=de")
    assert {d["id"][:2] for d in read(tmp_path / "kept")} == {"de"}


def test_words_alone_and_a_language_that_is_known(corpus, tmp_path):
    """What the document says of itself is believed, if it is a code: the text is German."""
    documents = [{"id": str(n), "text": LANGUAGES["de"], "language": said} for n, said in enumerate(["en", "English", "de", ["en"]])]
    run("annotate", corpus(documents), tmp_path / "out", **{"with": "words"})
    assert [("words" in d, "tags" in d) for d in read(tmp_path / "out")] == [(True, False), *[(False, False)] * 3]


def test_quality(corpus, tmp_path):
    classifier = quality.Classifier(np.random.default_rng(0).normal(size=1 << 20).astype(np.float32), 0.1)
    classifier.save(tmp_path / "q.npz")
    tally = run("annotate", corpus([{"text": "some words"}]), tmp_path / "out", **{"with": "quality"}, quality=str(tmp_path / "q.npz"))
    (found,) = read(tmp_path / "out")
    assert found["quality"] == classifier("some words") and tally.counts["quality"] == {quality.tenth(found["quality"]): 1}
    assert [quality.tenth(score) for score in (0.0, 0.0999, 0.1, 0.95, 1.0)] == ["0.0", "0.0", "0.1", "0.9", "0.9"]


def make_shouting(options):
    def shouting(document, tally):
        tally.count("shouting", str(document["text"].isupper()))
        return {"is_shouting": document["text"].isupper()}

    return shouting


@pytest.fixture
def my_module(monkeypatch):
    module = types.ModuleType("my_annotators")
    module.make_shouting, module.make_bad = make_shouting, lambda options: lambda document, tally: {"text": ""}
    monkeypatch.setitem(sys.modules, "my_annotators", module)


def test_an_annotator_of_the_users(corpus, tmp_path, monkeypatch, my_module):
    path = corpus([{"text": "AH"}, {"text": "Ah"}])
    tally = run("annotate", path, tmp_path / "a", **{"with": "my_annotators:make_shouting"})
    monkeypatch.setitem(annotate.ANNOTATORS, "shouting", make_shouting)
    run("annotate", path, tmp_path / "b", **{"with": "shouting"})
    assert [d["is_shouting"] for d in read(tmp_path / "a")] == [True, False] and content(tmp_path / "a") == content(tmp_path / "b")
    assert tally.counts["shouting"] == {"True": 1, "False": 1}
    run("filter", str(tmp_path / "a"), tmp_path / "kept", where="is_shouting=true")
    assert [d["text"] for d in read(tmp_path / "kept")] == ["AH"]


def test_an_annotator_of_the_users_in_workers(corpus, tmp_path, monkeypatch):
    (tmp_path / "mine_in_a_file.py").write_text(
        "def make(options):\n    return lambda document, tally: {'length': len(document['text'])}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run("annotate", corpus([{"text": "AH"}]), tmp_path / "out", num_workers=2, **{"with": "mine_in_a_file:make"})
    assert [d["length"] for d in read(tmp_path / "out")] == [2]


def test_no_annotator_writes_the_text(corpus, tmp_path, my_module):
    with pytest.raises(ConfigError, match="writes the field 'text'"):
        run("annotate", corpus([{"text": "AH"}]), tmp_path / "out", **{"with": "my_annotators:make_bad"})


@pytest.mark.parametrize(
    "options, error, what",
    [
        ({"with": "langauge"}, ConfigError, "Try: language"),
        ({"with": "no_such_module:x"}, ConfigError, "cannot be imported"),
        ({"with": "json:nothing"}, ConfigError, "cannot be imported"),
        ({"with": "quality"}, ConfigError, "needs a classifier"),
        ({"with": "quality", "quality": "nowhere.npz"}, MissingInput, "nowhere.npz"),
    ],
)
def test_wrong_options(options, error, what):
    with pytest.raises(error) as raised:
        registry.make("annotate", options)
    assert what in str(raised.value)


def test_an_annotator_whose_code_has_changed_is_noticed(corpus, tmp_path, monkeypatch):
    path = corpus([{"text": "AH"}])
    file = tmp_path / "mine_that_changes.py"
    file.write_text("def make(options):\n    return lambda document, tally: {'a': 1}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        run("annotate", path, tmp_path / "out", **{"with": "mine_that_changes:make"})
    file.write_text(file.read_text().replace("1", "2"))
    with pytest.raises(ConfigError, match="mine_that_changes:make .* there, .* now"):
        run("annotate", path, tmp_path / "out", **{"with": "mine_that_changes:make"})


def test_annotators_that_fail_are_named_with_their_line(corpus, tmp_path, monkeypatch):
    (tmp_path / "mine_that_fails.py").write_text(
        "import json\n\ndef make(options):\n    return {}['a key']\n\ndef listing(options):\n    return lambda document, tally: []\n\n"
        "def reading(options):\n    return lambda document, tally: json.loads(document['text'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="mine_that_fails:make' cannot be made: KeyError in mine_that_fails.py:4: 'a key'"):
        registry.make("annotate", {"with": "mine_that_fails:make"})
    with pytest.raises(ConfigError, match="annotator mine_that_fails:listing gave list, not fields"):
        run("annotate", corpus([{"text": "AH"}]), tmp_path / "list", **{"with": "mine_that_fails:listing"})
    tally = run("annotate", corpus([{"text": "AH"}, {"text": "{}"}]), tmp_path / "out", **{"with": "mine_that_fails:reading"})
    assert list(tally.counts["unreadable"]) == ["failed: JSONDecodeError in mine_that_fails.py:10"]


def test_the_tallies_of_parts_are_not_held(corpus, tmp_path, monkeypatch):
    """They would grow with the corpus: 20,000 words of each part."""
    held = []
    end = folder.Journal.end

    def watching(journal, parts, found):
        held.extend(journal.parts)
        end(journal, parts, found)

    def work(batch):
        tally = Tally()
        tally.count_all("words", ["a", "b", "a"])
        return Result(b"x", tally)

    monkeypatch.setattr(folder.Journal, "end", watching)
    inputs = passes.Inputs((corpus([{"text": "t" * 500}] * 10),))
    total = passes.run(tmp_path / "out", {"stage": "t"}, inputs, work, ".txt", Machine(1, 1000, progress=False))
    assert len(held) == 5 and not any("tally" in part for part in held)
    assert total.counts["words"] == {"a": 10, "b": 5}


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
def test_chinese_against_gold_tags():
    """People's Daily, January 1998: a part of what `benchmarks/tags.py` measures."""
    with gzip.open(DATA / "corpora" / "peoples_daily_199801.pos.txt.gz", "rt") as file:
        found = benchmark.measured(benchmark.gold(line for line, _ in zip(file, range(800), strict=False)))
    assert found.f1 > 0.81 and found.accuracy > 0.88


def test_the_measure_itself():
    """Two of three words found, one of them with its tag; four were given."""
    gold = [[("北京", "ns"), ("大学", "n"), ("。", "w")]]
    found = benchmark.measured(gold, lambda text: (["北京", "大", "学", "。"], ["v", "a", "n", "x"]))
    assert found.f1 == pytest.approx(2 * 2 / (3 + 4)) and found.accuracy == 0.5
    assert benchmark.gold(["[中国/ns  银行/n]nt  江/nr\n", "\n"]) == [[("中国", "ns"), ("银行", "n"), ("江", "nr")]]
    assert json.dumps(benchmark.coarse("Vg")) == '"v"'
