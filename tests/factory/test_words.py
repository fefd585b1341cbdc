"""Words and runs of words, against `re` and Python's own loops."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import words as plain_words

from mtnlg.factory import words

TEXTS = st.text(st.one_of(st.sampled_from("aAbB_1 .\n中文かカㄱéÉİıßΣσς\u0301\U00020000\ud800"), st.characters()), max_size=60)


@settings(max_examples=300)
@given(TEXTS)
def test_they_lie_where_the_regex_finds_them(text):
    found = words.words(text)
    plain = plain_words(text)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [(start, end) for _, start, end in plain]
    same = found.values[:, None] == found.values
    expected = [[word == other for other, _, _ in plain] for word, _, _ in plain]
    assert same.tolist() == expected


def test_a_word_is_the_same_in_any_case_and_place():
    """Also far behind the first block, across the border of two, and longer than one."""
    long = "x" * 70_000
    found = words.words(f"Straße {'pad ' * 20_000} STRAßE {'y' * 65_530}, {long}\n{long} {long}z")
    assert found.values[0] == found.values[20_001]
    assert found.values[-3] == found.values[-2] != found.values[-1]


def test_without_han_and_kana_they_are_what_the_regex_says():
    text = "Tom's 2nd naïve_word—ÜBER 3.14 한국어 кошка"
    found = words.words(text)
    assert [text[a:b] for a, b in zip(found.starts, found.ends, strict=True)] == re.findall(r"\w+", text)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 15))
def test_runs_are_equal_where_their_words_are(numbers, longest):
    values = words.words(" ".join("abcd"[number] for number in numbers)).values
    found = dict(words.runs(values, longest))
    assert sorted(found) == list(range(1, min(longest, len(numbers)) + 1))
    for n, run in found.items():
        plain = [tuple(numbers[at : at + n]) for at in range(len(numbers) - n + 1)]
        assert (run[:, None] == run).tolist() == [[one == other for other in plain] for one in plain]


def test_no_two_of_a_million_words_share_a_value():
    assert np.unique(words.words(" ".join(map(str, range(1_000_000)))).values).size == 1_000_000
