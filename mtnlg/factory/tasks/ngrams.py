"""The n-grams of evaluation tasks, as numbers of 64 bits in one sorted table, and where a text has any of them.

Of a passage with `max_words` words or more, every run of so many; of a shorter one, itself, unless it has less than `min_words`.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtnlg.core.errors import DataError
from mtnlg.factory import words
from mtnlg.factory.documents import Record
from mtnlg.factory.inputs import Inputs

_CHUNK_CHARS = 1_000_000  # of passages that are taken apart at once
_SLOTS_PER_NGRAM = 8  # of the first, coarse look


@dataclass(frozen=True)
class Matches:
    """Of a text, by place. starts, ends: in characters; ngrams: places in the table."""

    starts: np.ndarray
    ends: np.ndarray
    ngrams: np.ndarray


class _Lookup:
    """Which of many values are among some sorted ones: a coarse look at their first bits, then a search."""

    def __init__(self, known: np.ndarray):
        self._known = known
        self._shift = np.uint64(64 - int(_SLOTS_PER_NGRAM * known.size).bit_length())
        self._slots = np.zeros(1 << int(64 - self._shift), bool)
        self._slots[known >> self._shift] = True

    def find(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places among the values, places among the known ones)."""
        perhaps = np.flatnonzero(self._slots[values >> self._shift])
        at = np.minimum(np.searchsorted(self._known, values[perhaps]), self._known.size - 1)
        same = self._known[at] == values[perhaps]
        return perhaps[same], at[same]


@dataclass(frozen=True)
class Ngrams:
    """values: sorted, without doubles; begins: value of the first min_words words; lengths: in words; tasks: places in `names`, of the
    first task that has the n-gram.

    Two different n-grams share a value with probability 2^-64: beside a million of them, one place in 2 * 10^13 is taken for one.
    """

    names: tuple[str, ...]
    min_words: int
    values: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray
    tasks: np.ndarray

    def matches(self, text: str) -> Matches:
        """Every place of the text at which one of the n-grams stands."""
        found = words.words(text)
        starts, ends, ngrams = [], [], []
        for n, values in words.runs(found.values, max(self._lengths, default=0)):
            if n == self.min_words and not self._begin_lookup.find(values)[0].size:
                break  # as most texts do
            if n in self._lengths:
                at, ngram = self._lookup.find(values)
                starts.append(found.starts[at])
                ends.append(found.ends[at + n - 1])
                ngrams.append(ngram)
        if not any(map(len, ngrams)):
            return Matches(*[np.empty(0, np.int64)] * 3)
        order = np.lexsort((np.concatenate(ends), np.concatenate(starts)))
        return Matches(*(np.concatenate(each)[order] for each in (starts, ends, ngrams)))

    def without(self, left_out: np.ndarray) -> "Ngrams":
        """left_out: bool for each n-gram."""
        kept = (each[~left_out] for each in (self.values, self.begins, self.lengths, self.tasks))
        return Ngrams(self.names, self.min_words, *kept)

    def by_task(self) -> dict[str, int]:
        """How many n-grams each task has that no task before it has."""
        return dict(zip(self.names, np.bincount(self.tasks, minlength=len(self.names)).tolist(), strict=True))

    def sha256(self) -> str:
        return hashlib.sha256(self.values.tobytes() + self.tasks.tobytes()).hexdigest()

    @functools.cached_property
    def _lengths(self) -> set[int]:
        return set(np.unique(self.lengths).tolist())

    @functools.cached_property
    def _lookup(self) -> _Lookup:
        return _Lookup(self.values)

    @functools.cached_property
    def _begin_lookup(self) -> _Lookup:
        return _Lookup(np.unique(self.begins))


def read(against: tuple[str, ...], min_words: int, max_words: int) -> Ngrams:
    """Of every text in every record of these files, whatever its key; ids (keys `id` and `..._id`) are none. A path is a task.

    Raises what Inputs raises, and DataError: a record that is not JSON, or no n-gram at all.
    """
    inputs = Inputs(against, "--against")
    names = tuple(dict.fromkeys(file.source for file in inputs.files))
    found = [(names.index(source), *taken) for source, texts in _chunks(inputs) for taken in _taken(texts, min_words, max_words)]
    if not any(values.size for _, _, values, _ in found):
        cure = f"files with longer texts, or a --min_words below {min_words}"
        raise DataError(f"no text there has {min_words} words", ",".join(against), cure)
    tasks, lengths = (np.repeat(np.array([one[at] for one in found], np.uint16), [one[2].size for one in found]) for at in (0, 1))
    values, begins = (np.concatenate([one[at] for one in found]) for at in (2, 3))
    values, first = np.unique(values, return_index=True)
    return Ngrams(names, min_words, values, begins[first], lengths[first], tasks[first])


def _chunks(inputs: Inputs) -> Iterator[tuple[str, list[str]]]:
    """(task, some of its texts)."""
    for source, group in itertools.groupby((record for _, record in inputs.records()), lambda record: record.source):
        chunk, size = [], 0
        for record in group:
            texts = list(_texts(record))
            chunk += texts
            size += sum(map(len, texts))
            if size >= _CHUNK_CHARS:
                yield source, chunk
                chunk, size = [], 0
        yield source, chunk


def _texts(record: Record) -> Iterator[str]:
    try:
        todo = [json.loads(record.content)]
    except (ValueError, RecursionError) as error:
        what = f"a record that is not JSON: {record.fault or error}"
        raise DataError(what, record.where, "a whole copy of the file; a task that is not read would stay in the corpus") from None
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, dict):
            todo += [inner for key, inner in value.items() if key != "id" and not key.endswith("_id")]


def _taken(texts: list[str], min_words: int, max_words: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(n, values of n-grams, values of their beginnings) of all these texts."""
    for n, values, _, is_taken in words.runs_inside(texts, max_words):
        if n == min_words:
            begins = values
        if n >= min_words:
            taken, first = np.unique(values[is_taken], return_index=True)
            yield n, taken, begins[: values.size][is_taken][first]
