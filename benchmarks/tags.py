"""Compares the words and tags of `annotate --with=tags` in Chinese with those that people gave: the People's Daily of January 1998.

F1 is that of words: the same characters from the same place on. Tags are compared where the words agree, by their first letter in lower
case (n for nr, ns, nt, nz, Ng; v for vn, vd; u for uj, ul): the kinds of words that both sets share; jieba's x is punctuation, w there.

COMMAND: python -m benchmarks.tags ../shared/data/corpora/peoples_daily_199801.pos.txt.gz
"""

import gzip
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mtnlg.factory.text import tags


class Measured(NamedTuple):
    f1: float
    accuracy: float
    megabytes_per_second: float


def gold(lines: Iterable[str]) -> list[list[tuple[str, str]]]:
    """The (word, tag) of each line of WORD/TAG, with [A/x B/y]z as A/x B/y."""
    rows = [[item.lstrip("[").partition("]")[0].rpartition("/")[::2] for item in line.split()] for line in lines]
    return [[(word, tag) for word, tag in row if word] for row in rows if row]


def coarse(tag: str) -> str:
    first = tag[0].lower()
    return "w" if first == "x" else first


def measured(rows: list, tagged: Callable[[str], tuple[list[str], list[str]]] | None = None) -> Measured:
    tagged = tagged or tags.Chinese().tagged
    tagged("中文")  # loads what it needs
    agreed = given = found = right = num_bytes = 0
    start = time.process_time()
    for row in rows:
        text = "".join(word for word, _ in row)
        there, here = _places(row), _places(zip(*tagged(text), strict=True))
        same = there.keys() & here.keys()
        agreed, given, found = agreed + len(same), given + len(there), found + len(here)
        right += sum(coarse(there[place]) == coarse(here[place]) for place in same)
        num_bytes += len(text.encode())
    return Measured(2 * agreed / (given + found), right / agreed, num_bytes / 1e6 / (time.process_time() - start))


def _places(pairs: Iterable[tuple[str, str]]) -> dict[tuple[int, int], str]:
    at, places = 0, {}
    for word, tag in pairs:
        places[at, at + len(word)] = tag
        at += len(word)
    return places


if __name__ == "__main__":
    with gzip.open(sys.argv[1], "rt") as file:
        all_rows = gold(file)
    result = measured(all_rows)
    print(f"{len(all_rows)} lines: words F1 {result.f1:.4f}, tags {result.accuracy:.4f}, {result.megabytes_per_second:.2f} MB/s")
