"""The heuristics of Gopher and C4: a document on each side of every threshold, and repetitions counted by loops."""

import collections
import itertools
import re

import growth
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plainly import words as plain_words

from mtnlg.factory.documents import Drop
from mtnlg.factory.tally import Tally
from mtnlg.factory.text import rules

FRESH = ["".join(letters) for letters in itertools.product("abcde", "fghij", "klmno", "pqrst", "uvwxy")]  # 3125 words of 5 letters


def prose(number, *more):
    """So many different words, two of them stop words, unless `more` is put in place of the last."""
    return [*("the", "of", *FRESH)[: number - len(more)], *more]


def reason(rule, text) -> str:
    found = rule(text, Tally())
    return found.reason.partition(": ")[2] if isinstance(found, Drop) else ""


def lines(*counts_and_texts):
    """So many lines of each kind, with twenty new words at a {}."""
    fresh = iter(FRESH)
    texts = "\n".join(text for number, text in counts_and_texts for _ in range(number))
    return re.sub("{}", lambda _: " ".join(itertools.islice(fresh, 20)), texts)


SHORT = ["".join(letters) for letters in itertools.product("abc", "def", "ghijkl")][:48]
LONG = [word * 2 for word in FRESH[:47]]
GOPHER = [
    ("fewer than 50 words", prose(50), prose(49)),
    ("mean length of words not in 3 to 10", ["the", "of", *SHORT[:47], "abcd"], ["the", "of", *SHORT]),
    ("mean length of words not in 3 to 10", ["the", "of", *LONG, "x" * 25], ["the", "of", *LONG, "x" * 26]),
    ("more than 0.1 # a word", prose(50, *["#tag"] * 5), prose(50, *["#tag"] * 6)),
    ("more than 0.1 ellipses a word", prose(50, *["ab..."] * 3, *["cd…"] * 2, "end"), prose(50, *["ab..."] * 3, *["cd…"] * 3, "end")),
    ("fewer than 80% of words with a letter", prose(50, *map(str, range(110, 120))), prose(50, *map(str, range(110, 121)))),
    ("fewer than 2 stop words", ["The", "WITH", *FRESH[:60]], ["the", "the", *FRESH[:60]]),
    ("more than 90% of lines with a bullet", [lines((9, "- {}"), (1, "the of {}"))], [lines((19, "• {}"), (1, "the of {}"))]),
    ("more than 30% of lines end in an ellipsis", [lines((3, "{}..."), (7, "the of {}"))], [lines((4, "{}…"), (6, "the of {}"))]),
    ("more than 30% of lines twice", [lines((4, "ab"), (6, "the of {}"))], [lines((5, "ab"), (6, "the of {}"))]),
    (
        "more than 30% of paragraphs twice",
        [lines((4, "ab\n"), (6, "the of {}\n{}\n{}\n"))],
        [lines((5, "ab\n"), (6, "the of {}\n{}\n{}\n"))],
    ),
    (
        "more than 20% of characters in lines that are there twice",
        [lines((1, "the of {}"), (2, "{}"), (2, "x" * 122))],
        [lines((1, "the of {}"), (2, "{}"), (2, "x" * 123))],
    ),
]


@pytest.mark.parametrize("told, kept, left_out", GOPHER)
def test_gopher_on_both_sides_of_each_threshold(told, kept, left_out):
    assert (reason(rules.gopher, " ".join(kept)), reason(rules.gopher, " ".join(left_out))) == ("", told)


def test_gopher_counts_words_up_to_a_hundred_thousand():
    many = "the of " + " ".join(f"w{number}" for number in range(99_998))
    assert reason(rules.gopher, many) == ""
    assert reason(rules.gopher, many + " more") == "more than 100,000 words"


def plain_ngrams(text):
    """What the repetition rules say, by loops over n-grams."""
    found = [(word, end - start) for word, start, end in plain_words(text)]
    total = sum(length for _, length in found)
    for n in range(2, 11):
        grams = [tuple(word for word, _ in found[at : at + n]) for at in range(len(found) - n + 1)]
        times = collections.Counter(grams)
        if len(times) == len(grams):
            return ""
        if n in rules.GOPHER_TOP:
            most = max(times.values())
            largest = max(sum(length for _, length in found[at : at + n]) for at, gram in enumerate(grams) if times[gram] == most)
            if most * largest > rules.GOPHER_TOP[n] * total:
                return f"more than {rules.GOPHER_TOP[n]:.0%} of characters in one {n}-gram"
        else:
            covered = {at + k for at, gram in enumerate(grams) if gram in grams[:at] for k in range(n)}
            if sum(found[at][1] for at in covered) > rules.GOPHER_REPEATED[n] * total:
                return f"more than {rules.GOPHER_REPEATED[n]:.0%} of characters in repeated {n}-grams"
    return ""


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 60) | st.integers(0, 3), max_size=150), st.lists(st.tuples(st.integers(0, 100), st.integers(2, 12)), max_size=3)
)
@example([1, 2] * 3, [])
def test_gopher_finds_the_repetitions_that_loops_find(numbers, again):
    """With stretches of the text put in once more."""
    words = ["abcdefgh"[number % 8] * (1 + number // 8) for number in numbers]
    for at, length in again:
        words += words[at : at + length]
    text = " ".join(words)
    assert rules._ngrams_of_gopher(text) == plain_ngrams(text)


@pytest.mark.parametrize("n", range(2, 11))
def test_every_repetition_rule_of_gopher_is_the_first_to_tell_somewhere(n):
    limit = rules.GOPHER_TOP.get(n) or rules.GOPHER_REPEATED[n]
    kind = f"in one {n}-gram" if n in rules.GOPHER_TOP else f"in repeated {n}-grams"
    times = 2 if n >= 5 else 6 - n
    for number in range(20, 400):
        pieces = [FRESH[:n]] * times if n < 5 else [FRESH[:n], FRESH[20 : 20 + n], FRESH[:n], FRESH[20 : 20 + n]]
        fresh = iter(FRESH[100 : 100 + number])
        text = " ".join(itertools.chain.from_iterable([*piece, next(fresh)] for piece in pieces)) + " " + " ".join(fresh)
        found = rules._ngrams_of_gopher(text)
        assert found == plain_ngrams(text)
        if found == f"more than {limit:.0%} of characters {kind}":
            return
    pytest.fail("never")


SENTENCES = 'He came to see us.\nThen he left us all!\nAnd "who was it that came?"'


@pytest.mark.parametrize(
    "text, kept",
    [
        (SENTENCES, SENTENCES),
        (f"Home\n{SENTENCES}\n\n  About us  ", SENTENCES),
        (f"{SENTENCES}\nIt was four words.", SENTENCES),
        (f"{SENTENCES}\nIt was of five words.", f"{SENTENCES}\nIt was of five words."),
        (f"{SENTENCES}\nPlease turn JavaScript on now.", SENTENCES),
        (f"{SENTENCES}\nThis page uses cookies for you.", SENTENCES),
        (f"{SENTENCES}\nAnd so on and on it went...", SENTENCES),
        ("It was so.[12] It was not so.[citation needed] It is.", "It was so. It was not so. It is."),
    ],
)
def test_c4_keeps_lines_that_are_sentences(text, kept):
    assert rules.c4(text, Tally()) == kept
    assert rules.c4(kept, Tally()) == kept


@pytest.mark.parametrize(
    "text, told",
    [
        (SENTENCES + " {", "a curly bracket"),
        (SENTENCES + " Lorem Ipsum is it.", "lorem ipsum"),
        ("He came to see us. Then he left us.", "fewer than 3 sentences"),
        (SENTENCES.replace("!", ","), "fewer than 3 sentences"),
    ],
)
def test_c4_leaves_pages_out(text, told):
    assert reason(rules.c4, text) == told


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.sampled_from(sorted(rules.RULES)))
def test_no_rule_raises(text, name):
    assert isinstance(rules.RULES[name](text, Tally()), str | Drop)


@pytest.mark.parametrize("unit", ["a ", "\n", "ab\n\n", "- \n", "[1", "[1]", "...", ".\n", "中", "x. ", "!?"])
@pytest.mark.parametrize(
    "rule", [rules.c4, rules._lines_of_gopher, rules._duplicates_of_gopher, rules._ngrams_of_gopher, rules._words_of_gopher]
)
def test_time_grows_with_length_alone(unit, rule):
    growth.require_linear(lambda text: rule(text, Tally()) if rule is rules.c4 else rule(text), growth.repeated(unit), 50_000)


def test_time_of_the_sentences_of_c4_grows_with_length_alone():
    """A line that is kept, with an end of a sentence in it that is none however long it is."""
    growth.require_linear(lambda text: rules.c4(text, Tally()), lambda length: f"{'one two three four ' * 9}{'!' * length}a b c d.", 1_000)


@given(st.text(alphabet="a.!? \n\"”’'", max_size=30))
def test_sentences_are_those_of_whole_runs_of_marks(text):
    assert len(rules._SENTENCE_END.findall(text)) == len(re.findall(r"[.!?]+[\"”']?(?=\s|\Z)", text))
