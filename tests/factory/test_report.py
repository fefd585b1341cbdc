"""The page about a build: its numbers, its estimates, and that no text gets out of its quotes."""

import html.parser
import pathlib
import re

import pytest
from corpora import run

from mtnlg.factory.report import charts, levels, page
from mtnlg.factory.report.markup import Markup, tag
from mtnlg.factory.report.summary import Ended, size, text

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></pre>\x00\x1b[31m\u202eevil & co"


def ended(name, inputs=(), stage="keep", *, samples=None, quarantine=(), options=None, **tables):
    counts = {table.replace("_", " "): counted for table, counted in tables.items()}
    path = pathlib.Path("out") / name
    return Ended(name, path, stage, options or {}, tuple(inputs), 9, 2.0, counts, samples or {}, list(quarantine))


def build():
    """Two sources; the second passes the first stage by, and a stage counts tokens at the end."""
    return [
        ended(
            "first",
            ["a.jsonl"],
            documents_read={"a": 100},
            bytes_read={"a": 1000},
            documents_written={"a": 60},
            bytes_written={"a": 600},
            dropped={"too short": 30, "script": 10},
            length={"       64": 20, "      128": 40},
        ),
        ended(
            "second",
            ["first", "b.jsonl"],
            documents_read={"a": 60, "b": 50},
            bytes_read={"a": 600, "b": 400},
            documents_written={"a": 30, "b": 50},
            bytes_written={"a": 300, "b": 400},
        ),
        ended(
            "tokens",
            ["second"],
            "words",
            documents_read={"a": 30, "b": 50},
            bytes_read={"a": 300, "b": 400},
            documents_written={"a": 30, "b": 50},
            bytes_written={"a": 300, "b": 400},
            tokens_written={"a": 60, "b": 200},
        ),
    ]


def test_what_is_left_of_each_source_by_hand():
    found = [(level.label, level.parts) for level in levels.counted(build(), "documents")]
    assert found == [("as it was read", {"a": 100}), ("first", {"a": 60}), ("second", {"a": 30, "b": 50}), ("tokens", {"a": 30, "b": 50})]


def test_tokens_are_counted_at_the_end_and_estimated_before():
    found = [(level.label, level.parts, level.is_guess) for level in levels.tokens(build())]
    assert found == [
        ("as it was read", {"a": 1000 * 60 / 300}, True),
        ("first", {"a": 600 * 60 / 300}, True),
        ("second", {"a": 60, "b": 200}, True),
        ("tokens", {"a": 60, "b": 200}, False),
    ]
    assert levels.tokens(build()[:2]) == []


def test_a_source_that_was_never_tokenised_is_estimated_as_all_the_others():
    build_ = build()
    build_[0].counts["bytes read"]["gone"] = 700
    assert levels.tokens(build_)[0].parts["gone"] == 260


def test_a_stage_that_only_learns_is_no_level():
    build_ = [*build(), ended("model", ["second"], "learn", documents_read={"a": 30}, bytes_read={"a": 300})]
    assert levels.counted(build_, "bytes") == levels.counted(build(), "bytes")
    assert "written" not in text(build_[-1])


def test_nodes_side_by_side_are_one_level():
    side_by_side = [ended(name, [f"{name}.jsonl"], documents_read={name: 4}, documents_written={name: 3}) for name in "ab"]
    all_ = [*side_by_side, ended("both", ["a", "b"], "merge", documents_read={"a": 3, "b": 3}, documents_written={"a": 3, "b": 1})]
    assert [(label, [one.name for one in own]) for label, own in levels.grouped(all_)] == [
        ("keep (2 folders)", ["a", "b"]),
        ("both", ["both"]),
    ]
    assert [level.parts for level in levels.counted(all_, "documents")] == [{"a": 4, "b": 4}, {"a": 3, "b": 3}, {"a": 3, "b": 1}]


class Reader(html.parser.HTMLParser):
    """Every element and attribute of a page, and whether its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.words, self._open = [], [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, name, attributes):
        self.handle_startendtag(name, attributes)
        self._open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append(name)
        self.attributes += attributes

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def hostile():
    """A stage that has seen the worst in every place."""
    return ended(
        HOSTILE,
        [HOSTILE],
        HOSTILE,
        options={HOSTILE: HOSTILE},
        samples={HOSTILE: [{"id": HOSTILE, "text": HOSTILE * 9, HOSTILE: [HOSTILE]}]},
        quarantine=[{"where": HOSTILE, "reason": HOSTILE, "begins": HOSTILE}],
        documents_read={HOSTILE: 3},
        documents_written={HOSTILE: 2},
        bytes_read={HOSTILE: 3},
        dropped={HOSTILE: 1, "": 2},
        unreadable={HOSTILE: 1},
        tokens_written={HOSTILE: 7},
        **{HOSTILE: {HOSTILE: 4}},
    )


def test_hostile_texts_stay_texts(hostile):
    """Negative control: the same page with a harmless text has exactly the same elements and attributes."""
    shown = page.page(HOSTILE, [hostile])
    read = Reader(shown)
    assert "script" not in read.elements and "img" not in read.elements
    assert not any(name.startswith("on") or name in ("src", "href") for name, _ in read.attributes)
    assert any("<script>alert(1)</script>" in words for words in read.words)
    assert all(one.isprintable() or one == "\n" for one in shown)
    assert "default-src 'none'" in dict(read.attributes)["content"]


def test_nothing_is_fetched():
    shown = page.page("build", build())
    assert not re.search(r"https?://|url\(|@import|src=|href=", shown)


def test_the_page_says_what_was_counted():
    shown = page.page("demo", build())
    words = Reader(shown).words
    assert "first → second → tokens" in words
    for expected in ("80", "260", "≈ 200", "too short", "30", "Left out, by reason", "6.0 s"):
        assert any(expected in one for one in words), expected
    assert shown == page.page("demo", build())


def test_a_stage_that_read_nothing_has_a_page(tmp_path):
    page.write(tmp_path / "new" / "empty.html", "empty", [ended("empty")])
    Reader((tmp_path / "new" / "empty.html").read_text())


def test_only_markup_is_not_escaped():
    assert tag("p", "<b>", Markup("<i>"), ["&", 3], class_='"') == '<p class="&quot;">&lt;b&gt;<i>&amp;3</p>'


def test_histograms():
    few = Reader(charts.columns({2: 5, 3: 1, 10: 1}, "documents"))
    assert few.elements.count("rect") == 3 and "3 documents: 1" in few.words
    many = Reader(charts.columns({n: 1 for n in range(0, 100)}, "documents"))
    assert many.elements.count("rect") == 8 and "64 documents: 36" in many.words and "0 documents: 1" in many.words
    assert page._numeric({" 12": 1, "7": 2}) == {12: 1, 7: 2} and page._numeric({"12": 1, "a": 2}) == {}


def test_ranked_bars_name_the_rest():
    words = Reader(charts.bars({f"reason {n:02}": 100 + n for n in range(20)})).words
    assert words[0] == "reason 19" and "and 8 more, 828 together" in words


def test_bars_of_a_scale_are_in_its_order():
    words = Reader(charts.bars({"Jaccard 0.95": 2, "Jaccard 0.8": 1, "Jaccard 0.85": 9})).words
    assert [one for one in words if "J" in one] == ["Jaccard 0.8", "Jaccard 0.85", "Jaccard 0.95"]


def test_the_summary_of_a_stage():
    assert text(build()[0]).splitlines() == [
        "first: 2.0 s, in out/first",
        "  documents              100 read              60 written    60.0%",
        "  bytes               1.0 kB read           600 B written    60.0%",
        "  dropped                 40: too short 30, script 10",
    ]
    assert "\x1b" not in text(ended("a", dropped={"\x1b[31m": 1}))


def test_sizes():
    assert [size(n) for n in (0, 999, 1000, 12_345_678, 5e12)] == ["0 B", "999 B", "1.0 kB", "12.3 MB", "5.0 TB"]


def test_of_very_many_sources_the_largest_are_named(corpus, tmp_path):
    path = corpus([{"text": "t" * 9, "source": f"source-{n}"} for n in range(3000)])
    run("clean", path, tmp_path / "out", min_chars=0)
    page.write(tmp_path / "page.html", "many", [Ended.load(tmp_path / "out", "clean", (path,))])
    text = (tmp_path / "page.html").read_text()
    assert "2,900 others" in text and text.count("source-") < 500
