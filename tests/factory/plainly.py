"""Decontamination as its definition reads, in loops over characters and tuples of words: slow, and nothing of the factory's in it."""

import re
from collections import Counter

ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"(?=\w)[{ALONE}]|(?:(?![{ALONE}])\w)+")


def words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end), in lower case letter by letter."""
    return [("".join(letter.lower()[0] for letter in match[0]), *match.span()) for match in WORD.finditer(text)]


def ngrams_of(passages: list[str], least: int, most: int) -> set[tuple]:
    found = set()
    for passage in passages:
        split = [word for word, _, _ in words(passage)]
        if least <= len(split) < most:
            found.add(tuple(split))
        found |= {tuple(split[at : at + most]) for at in range(len(split) - most + 1)}
    return found


def places(text: str, ngrams: set[tuple]) -> list[tuple[int, int, tuple]]:
    """(start, end, n-gram) of every occurrence."""
    split = words(text)
    found = []
    for at in range(len(split)):
        for n in sorted({len(ngram) for ngram in ngrams}):
            ngram = tuple(word for word, _, _ in split[at : at + n])
            if ngram in ngrams and len(ngram) == n:
                found.append((split[at][1], split[at + n - 1][2], ngram))
    return found


def rare(texts: list[str], ngrams: set[tuple], common_times: int) -> set[tuple]:
    times = Counter(ngram for text in texts for _, _, ngram in places(text, ngrams))
    return {ngram for ngram in ngrams if times[ngram] < common_times}


def pieces(text: str, ngrams: set[tuple], around: int) -> list[str]:
    """What is left of a text, before anything is found too short."""
    gone = [False] * len(text)
    for start, end, _ in places(text, ngrams):
        start, end = max(start - around, 0), min(end + around, len(text))
        while start > 0 and text[start - 1] not in ".!?。！？":
            start -= 1
        while end < len(text) and text[end - 1] not in ".!?。！？":
            end += 1
        gone[start:end] = [True] * (end - start)
    found, at = [], 0
    while at < len(text):
        end = at
        while end < len(text) and gone[end] == gone[at]:
            end += 1
        if not gone[at]:
            found.append(text[at:end].lstrip() if at else text[at:end])
        at = end
    return found


def decontaminated(texts: list[str], passages: list[str], *, least, most, around, min_chars, max_pieces, common_times) -> list[list[str]]:
    """The texts that take each one's place."""
    ngrams = rare(texts, ngrams_of(passages, least, most), common_times)
    found = []
    for text in texts:
        if not places(text, ngrams):
            found.append([text])
            continue
        kept = [piece for piece in pieces(text, ngrams, around) if len(piece) >= min_chars]
        found.append(kept if len(kept) <= max_pieces else [])
    return found
