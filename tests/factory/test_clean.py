"""Cleaning mends what is broken, counts what it did, and leaves alone what was well."""

import re

import growth
import pytest
from corpora import content, read, run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import ConfigError
from mtnlg.factory import registry
from mtnlg.factory.documents import Drop
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally
from mtnlg.factory.text import fixes
from mtnlg.factory.text.clean import Clean

PIECES = [
    "a",
    "Z",
    " ",
    "  ",
    "\t",
    "\n",
    "\n\n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "\ufeff",
    "\x1b[31m",
    "\x00",
    "é",
    "Ã©",
    "Ã",
    "â€œ",
    "“",
    "ﬁ",
    "，",
]
PIECES += ["中", "&amp;", "&lt;", "<", "***", "#", "\\begin{document}", "\\end{document}", "References", "\\appendix", "Produced by x"]
PIECES += [
    "*** START OF THE PROJECT GUTENBERG EBOOK ***",
    "*** END OF THE PROJECT GUTENBERG",
    "Advertisement",
    "\x85",
    "\u2028",
    "\U0001f600",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)


def clean(text, *, source="s", **options):
    """(text or Drop, what was counted) of one document."""
    tally = Tally()
    made = registry.make("clean", {"min_chars": 0} | options).step()({"id": "1", "text": text, "source": source}, tally)
    return made if isinstance(made, Drop) else made[0]["text"], dict(tally.counts.get("changed", {}))


def test_encodings_and_white_space():
    broken = "  The cafÃ© said:\u00a0 â€œyes&amp;noâ€\u009d \n \n\n\n so\tit was.  \n"
    assert clean(broken) == ('The café said: "yes&no"\n\nso it was.', {"encoding": 1, "white space": 1})
    assert clean("It was well.\n\nAll of it.") == ("It was well.\n\nAll of it.", {})


def test_chinese_punctuation_stays():
    """Negative control: the same characters among Latin letters are mended."""
    text = "他说：“好，（真的）！”"
    assert clean(text) == (text, {})
    assert clean("“ＯＫ”") == ('"OK"', {"encoding": 1})


def test_escapes_stay_where_the_text_is_about_html():
    assert clean("Tom &amp; Ann") == ("Tom & Ann", {"encoding": 1})
    assert clean("<b> is written &lt;b&gt;")[0] == "<b> is written &lt;b&gt;"


@pytest.mark.parametrize("length, option, reason", [(9, 10, "too short"), (10, 10, None), (0, 0, None)])
def test_min_chars(length, option, reason):
    found, _ = clean("x" * length, min_chars=option)
    assert (found.reason if isinstance(found, Drop) else None) == reason


@pytest.mark.parametrize(
    "length, min_chars, reason",
    [(255, 512, "javascript"), (256, 512, "too short"), (512, 512, None), (255, 0, "javascript"), (256, 0, None), (99, 100, "javascript")],
)
def test_javascript_is_told_from_too_short(length, min_chars, reason):
    """Also where the other rule would take the document, so that the report names what it is."""
    found, _ = clean("Enable JavaScript".ljust(length, "x"), min_chars=min_chars)
    assert (found.reason if isinstance(found, Drop) else None) == reason
    assert not isinstance(clean("y" * 255)[0], Drop)


CODE = "def f(x):\r\n    if x:  # spaces  in a line\r\n\treturn '&amp; “Ã©” \ufb01'\n\n\n\n\nclass A:\n    pass"


def test_code_keeps_its_lines_and_indentation():
    kept, changed = clean(f"\ufeff\n\n{CODE}\n\n", fixes="all:code")
    assert kept == CODE.replace("\r\n", "\n") and changed == {"code": 1}
    assert clean(CODE)[0] != kept


@settings(max_examples=100)
@given(st.lists(st.tuples(st.text(" \t", max_size=4), st.text("ab&;é<", min_size=1, max_size=5)), min_size=1, max_size=8))
def test_code_keeps_every_indentation(lines):
    text = "\n".join(indent + rest for indent, rest in lines)
    assert clean(text, fixes="all:code") == (text, {})


BOOK = """The Project Gutenberg EBook of Emma, by Jane Austen

This eBook is for the use of anyone anywhere.

*** START OF THIS PROJECT GUTENBERG EBOOK
EMMA ***

Produced by An Anonymous Volunteer
and others

EMMA

It was by a *** mile.

End of the Project Gutenberg EBook of Emma

*** END OF THIS PROJECT GUTENBERG EBOOK EMMA ***
licence"""
ARTICLE = r"""\documentclass{article}
\usepackage{x}
\begin{document}
We show it \cite{a}. References are below.
\begin{thebibliography}{9}
\bibitem{a} A.
\end{thebibliography}
\appendix
Proofs.
\end{document}
rest"""
MARKDOWN = "# Intro\nWe show it.\nReferences\nto others are here.\nAnd on it goes, for long.\n\n# References\n[1] A.\n[2] B."
NEWS = (
    "The mayor spoke.\nAdvertisement\nRead more: Another story\nHe read more books than I.\nCopyright 2019 The Paper. All rights reserved."
)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("gutenberg", BOOK, "EMMA\n\nIt was by a *** mile."),
        ("paper", ARTICLE, "We show it \\cite{a}. References are below.\n\\appendix\nProofs."),
        ("paper", MARKDOWN, "# Intro\nWe show it.\nReferences\nto others are here.\nAnd on it goes, for long."),
        ("realnews", NEWS, "The mayor spoke.\nHe read more books than I."),
        ("stories", "She went\nhome, and\nslept.\nThen\n\nShe woke.\nA day.", "She went home, and slept.\nThen\n\nShe woke.\nA day."),
    ],
)
def test_fixes_of_sources(name, text, expected):
    found, changed = clean(text, fixes=f"s:{name}")
    assert found == expected and changed[name] == 1
    assert clean(text, fixes=f"other:{name}") == clean(text) != (found, changed)
    assert clean(expected, fixes=f"s:{name}") == (expected, {})


@settings(max_examples=400, deadline=None)
@given(TEXTS, st.sampled_from([(), *((f"all:{name}",) for name in fixes.FIXES)]))
@example("Ã  x", ())
def test_cleaning_what_is_clean_changes_nothing(text, named):
    once, _ = clean(text, fixes=named, javascript_chars=0)
    assert clean(once, fixes=named, javascript_chars=0) == (once, {})


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_what_ftfy_leaves_alone_is_found_without_it(text):
    """Lines that are passed over are those in which it finds nothing."""
    import ftfy

    from mtnlg.factory.text.clean import _NOT_PLAIN

    if not _NOT_PLAIN.search(text):
        assert ftfy.fix_text(text) == text


@pytest.mark.parametrize(
    "options, what",
    [
        ({"fixes": "code"}, "names no source.*all:code"),
        ({"fixes": "a:coed"}, "no fix 'coed'.*Try: code"),
        ({"min_chars": -1}, "below 0"),
        ({"javascript_chars": -1}, "below 0"),
    ],
)
def test_wrong_options(options, what):
    with pytest.raises(ConfigError) as error:
        registry.make("clean", options)
    assert re.search(what, str(error.value))


HOSTILE = [
    "\n",
    "\n ",
    "*",
    "a\n",
    "***\n",
    " ",
    "é",
    "Ã",
    "Produced by ",
    "#",
    "references ",
    "&",
    "\u00a0",
    "copyright\n",
    "\\begin",
    ";\n a",
]
HOSTILE += ["*** START OF THE PROJECT GUTENBERG ", "Produced by\nx\n"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_length_alone(unit):
    step = Clean(min_chars=0, fixes=tuple(f"all:{name}" for name in fixes.FIXES if name != "code")).step()
    growth.require_linear(lambda text: step({"id": "1", "text": text, "source": "s"}, Tally()), growth.repeated(unit), 15_000)


@pytest.mark.parametrize(
    "head, unit, tail", [("References", "\u00a0", "x"), ("# 1. ", " ", "x"), ("Produced by ", "\n ", "x"), ("", "\u00a0", "x")]
)
@pytest.mark.parametrize("name", fixes.FIXES)
def test_time_of_a_fix_grows_with_length_alone(name, head, unit, tail):
    """One long line that a pattern nearly fits, in the half that is looked at for references."""
    growth.require_linear(fixes.FIXES[name], lambda length: "a\n" * length + head + unit * length + tail, 2_000)


def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path):
    path = corpus([{"text": f"cafÃ© {n}  \n\n\n x" * 20} for n in range(200)])
    for workers in (1, 2, 4):
        run("clean", path, tmp_path / str(workers), num_workers=workers, part_bytes=20_000, min_chars=10, fixes="corpus:stories")
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    assert read(tmp_path / "1")[0]["text"].startswith("café 0\n\nx")


def test_a_source_of_a_fix_that_never_came_is_told(corpus, tmp_path, capsys):
    step = Clean(min_chars=0, fixes=("bookz:gutenberg", "corpus:stories", "all:paper"))
    step.run((corpus([{"text": "a"}]),), tmp_path / "out", Machine(progress=True))
    told = capsys.readouterr().err
    assert "no document came from the source 'bookz'" in told and told.count("no document") == 1
