"""Heuristics that tell texts from what only looks like them: Gopher (arXiv 2112.11446, appendix A) and C4 (arXiv 1910.10683, 2.2).

A rule set is a function (text, tally) that gives the text, shortened perhaps, or a Drop. Both are made for English and languages that part
words by spaces.
"""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np

from mtnlg.factory import words
from mtnlg.factory.documents import Drop
from mtnlg.factory.tally import Tally

GOPHER_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
GOPHER_TOP = {2: 0.20, 3: 0.18, 4: 0.16}  # table A1: most of the characters that the most frequent n-gram may hold
GOPHER_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # and all n-grams that came before
C4_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
C4_MIN_SENTENCES, C4_MIN_WORDS = 3, 5
_ALPHABETIC = re.compile(r"[^\W\d_]")
_PARAGRAPHS = re.compile(r"\n{2,}")
_CITATION = re.compile(r"\[(?:\d{1,4}|edit|citation needed)\]")
_SENTENCE_END = re.compile(r"[.!?][\"”']?(?=\s|\Z)")


def gopher(text: str, tally: Tally) -> str | Drop:
    """The text as it is, if neither its words and lines nor its repetitions are those of spam, lists and code."""
    for rule in (_words_of_gopher, _lines_of_gopher, _duplicates_of_gopher, _ngrams_of_gopher):
        if reason := rule(text):
            return Drop(f"gopher: {reason}")
    return text


def _words_of_gopher(text: str) -> str:
    found = text.split()
    if len(found) < 50:
        return "fewer than 50 words"
    if len(found) > 100_000:
        return "more than 100,000 words"
    mean = sum(map(len, found)) / len(found)
    if not 3 <= mean <= 10:
        return "mean length of words not in 3 to 10"
    if text.count("#") > 0.1 * len(found):
        return "more than 0.1 # a word"
    if text.count("...") + text.count("…") > 0.1 * len(found):
        return "more than 0.1 ellipses a word"
    if sum(map(bool, map(_ALPHABETIC.search, found))) < 0.8 * len(found):
        return "fewer than 80% of words with a letter"
    if len(GOPHER_STOP_WORDS.intersection(text.lower().split())) < 2:
        return "fewer than 2 stop words"
    return ""


def _lines_of_gopher(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(("•", "‣", "▪", "*", "-")) for line in lines) > 0.9 * len(lines):
        return "more than 90% of lines with a bullet"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "more than 30% of lines end in an ellipsis"
    return ""


def _duplicates_of_gopher(text: str) -> str:
    """Of lines and paragraphs, those that came before, by number and by characters."""
    for name, parts in (("lines", text.split("\n")), ("paragraphs", _PARAGRAPHS.split(text))):
        times = Counter(stripped for part in parts if (stripped := part.strip()))
        if sum(times.values()) - len(times) > 0.3 * sum(times.values()):
            return f"more than 30% of {name} twice"
        if sum((number - 1) * len(part) for part, number in times.items()) > 0.2 * len(text):
            return f"more than 20% of characters in {name} that are there twice"
    return ""


def _ngrams_of_gopher(text: str) -> str:
    found = words.words(text)
    ends = np.concatenate([[0], np.cumsum(found.ends - found.starts)])  # in characters of words
    for n, values in words.runs(found.values, max(GOPHER_REPEATED)):
        if n == 1:
            continue
        _, first, kind, times = np.unique(values, return_index=True, return_inverse=True, return_counts=True)
        if times.size == values.size:  # none is there twice: no longer one either
            return ""
        if n in GOPHER_TOP:
            most = times.max()
            if most * (ends[first[times == most] + n] - ends[first[times == most]]).max() > GOPHER_TOP[n] * ends[-1]:
                return f"more than {GOPHER_TOP[n]:.0%} of characters in one {n}-gram"
        if n in GOPHER_REPEATED:
            again = np.flatnonzero(first[kind] != np.arange(values.size))
            if _covered(again, n, ends) > GOPHER_REPEATED[n] * ends[-1]:
                return f"more than {GOPHER_REPEATED[n]:.0%} of characters in repeated {n}-grams"
    return ""


def _covered(starts: np.ndarray, n: int, ends: np.ndarray) -> int:
    """Characters of the words in these runs of n, none counted twice."""
    depth = np.zeros(ends.size, np.int64)
    depth[starts] += 1
    np.subtract.at(depth, starts + n, 1)
    return int(np.diff(ends)[depth.cumsum()[:-1] > 0].sum())


def c4(text: str, tally: Tally) -> str | Drop:
    """The lines that are sentences; nothing of a page with code, filler or fewer than three sentences. Without the list of bad words,
    and without the removal of repeated spans, which is deduplication's."""
    if "{" in text:
        return Drop("c4: a curly bracket")
    lower = text.lower()
    if "lorem ipsum" in lower:
        return Drop("c4: lorem ipsum")
    kept = []
    for line in filter(None, map(str.strip, _CITATION.sub("", text).split("\n"))):
        if reason := _line_of_c4(line):
            tally.count("lines left out", f"c4: {reason}")
        else:
            kept.append(line)
    kept = "\n".join(kept)
    if len(_SENTENCE_END.findall(kept)) < C4_MIN_SENTENCES:
        return Drop(f"c4: fewer than {C4_MIN_SENTENCES} sentences")
    return kept


def _line_of_c4(line: str) -> str:
    if not line.endswith((".", "!", "?", '"', "”")) or line.endswith("..."):
        return "no end of a sentence"
    if len(line.split()) < C4_MIN_WORDS:
        return f"fewer than {C4_MIN_WORDS} words"
    lower = line.lower()
    if "javascript" in lower:
        return "javascript"
    if any(policy in lower for policy in C4_POLICIES):
        return "a policy"
    return ""


RULES: dict[str, Callable[[str, Tally], str | Drop]] = {"gopher": gopher, "c4": c4}
