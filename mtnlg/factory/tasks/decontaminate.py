"""Removes the texts of evaluation tasks from a corpus (MT-NLG, arXiv 2201.11990, section 3, after GPT-3, arXiv 2005.14165, appendix C).

Twice over the corpus: first to count how often each n-gram of the tasks occurs, for those that occur often are language and no leak;
then to remove the others with what stands around them.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import key
from mtnlg.corpus import sources
from mtnlg.factory import documents, folder, passes, stage
from mtnlg.factory.documents import Drop, Unreadable
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Batch, Machine, Result
from mtnlg.factory.tally import Tally
from mtnlg.factory.tasks import ngrams
from mtnlg.factory.tasks.ngrams import Matches, Ngrams

COUNTS = "counts"  # folder of the first pass, in that of the stage
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile("[.!?。！？]")


@dataclass(frozen=True)
class Decontaminate:
    """Removes runs of words that evaluation tasks have too, with what stands around them, and splits the documents there."""

    against: tuple[str, ...] = key((), "files and folders of JSONL with the tasks; every text in their records counts, but for ids")
    max_words: int = key(13, "words of an n-gram")
    min_words: int = key(8, "texts of a task with fewer words than max_words are one n-gram, with fewer than this none")
    surround_chars: int = key(200, "removed on each side of an n-gram, and on to the end of a sentence")
    min_chars: int = key(200, "shorter pieces are left out")
    max_pieces: int = key(10, "documents that fall into more pieces are left out")
    common_times: int = key(10, "n-grams that the corpus has so many times are ignored")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises ConfigError, and what `ngrams.read` and `passes.run` raise."""
        read, output = Inputs(inputs), pathlib.Path(output)
        table = self._table()
        known = {"sha256": table.sha256(), "n-grams": table.by_task()}
        what = {"stage": "decontaminate", "options": dataclasses.asdict(self), "against": known}
        work = stage.DocumentWork(functools.partial(self._step, table, output / COUNTS))
        return passes.run(output, what, read, work, stage.SUFFIX, machine, functools.partial(self._prepare, table, read, output, machine))

    def _prepare(self, table: Ngrams, read: Inputs, output: pathlib.Path, machine: Machine) -> Tally:
        """The first pass; counts what is removed by the second."""
        passes.run(output / COUNTS, _counting(table), read, _Count(table), ".counts", machine, whole=output)
        rare, tally = self._rare(table, output / COUNTS), Tally()
        machine.say(f"{table.values.size} n-grams of {len(table.names)} tasks, {table.values.size - rare.values.size} of them common")
        for task, number in rare.by_task().items():
            tally.count("n-grams to remove", task, number)
        return tally

    def step(self, counts=None) -> stage.Step:
        """The second pass alone. counts: the folder `counts` of a run against the same tasks; None: no n-gram is common.

        Raises ConfigError (other tasks or numbers of words), and what `ngrams.read` raises.
        """
        table = self._table()
        return _Step(self, table) if counts is None else self._step(table, pathlib.Path(counts))

    def _step(self, table: Ngrams, counts: pathlib.Path) -> stage.Step:
        return _Step(self, self._rare(table, counts))

    def _table(self) -> Ngrams:
        if not self.against:
            raise ConfigError("there is nothing to compare with", "--against", "--against=FILE.jsonl,... with the evaluation tasks")
        if not 1 <= self.min_words <= self.max_words:
            raise ConfigError(f"min_words {self.min_words} and max_words {self.max_words}", "--min_words", "1 <= min_words <= max_words")
        if self.surround_chars < 0:
            raise ConfigError(f"surround_chars={self.surround_chars} is out of range", "--surround_chars", "0 or more characters")
        return ngrams.read(self.against, self.min_words, self.max_words)

    def _rare(self, table: Ngrams, path: pathlib.Path) -> Ngrams:
        """The table without what the corpus has often, by the counts of an ended first pass."""
        counted = folder.read(path)
        if {key: counted.get(key) for key in _counting(table)} != _counting(table):
            cure = "counts of a run with the same --against, --min_words and --max_words"
            raise ConfigError("these counts are of other n-grams", str(path), cure)
        times = np.zeros(table.values.size, np.int64)
        for part in counted["parts"]:
            with sources.opened(path / part["name"]) as file:
                at, number = np.frombuffer(file.read(), "<i8").reshape(-1, 2).T
            np.add.at(times, at, number)
        return table.without(times >= self.common_times)


def _counting(table: Ngrams) -> dict:
    """By which the folder of the first pass is known."""
    return {"stage": "decontaminate, counts", "options": {"ngrams": table.sha256()}}


@dataclass(frozen=True)
class _Count:
    """Of a batch: (place in the table, times), as pairs of int64."""

    table: Ngrams

    def __call__(self, batch: Batch) -> Result:
        found = [np.empty(0, np.int64)]
        for record in batch.records:
            try:
                found.append(self.table.matches(documents.parse(record)["text"]).ngrams)
            except Unreadable:  # the second pass sets it aside
                continue
        return Result(np.stack(np.unique(np.concatenate(found), return_counts=True), axis=1).astype("<i8").tobytes())


class _Step:
    """The step of the second pass. table: what is removed."""

    def __init__(self, options: Decontaminate, table: Ngrams):
        self._options, self._table = options, table

    def __call__(self, document: dict, tally: Tally) -> list[dict] | Drop:
        matches = self._table.matches(document["text"])
        if not matches.starts.size:
            return [document]
        self._count(matches, tally)
        pieces = self._pieces(document, matches, tally)
        kept = [piece for piece in pieces if len(piece) >= max(self._options.min_chars, 1)]
        tally.count("pieces", "kept", len(kept))
        tally.count("pieces", "too short", sum(map(bool, pieces)) - len(kept))
        if not kept:
            return Drop("too little left")
        if len(kept) > self._options.max_pieces:
            return Drop("too many pieces")
        tally.count("changed", "split" if len(kept) > 1 else "trimmed")
        return [document | {"id": f"{document['id']}#{number}", "text": piece} for number, piece in enumerate(kept, 1)]

    def _count(self, matches: Matches, tally: Tally) -> None:
        for task, number in zip(*np.unique(self._table.tasks[matches.ngrams], return_counts=True), strict=True):
            tally.count("n-grams found", self._table.names[task], int(number))
            tally.count("documents with n-grams", self._table.names[task])

    def _pieces(self, document: dict, matches: Matches, tally: Tally) -> list[str]:
        """What is left of a text, without the white space that a cut leaves at the beginning of a piece."""
        text, pieces, end = document["text"], [], 0
        for start, stop, first in self._removed(text, matches):
            task = self._table.names[self._table.tasks[matches.ngrams[first]]]
            ngram = documents.shown(" ".join(_WORD.findall(text[matches.starts[first] : matches.ends[first]].lower())))
            tally.count("removed for", f"{task}: {ngram}")
            tally.sample(f"removed, {task}", {"id": document["id"], "ngram": ngram, "text": documents.shown(text[start:stop])})
            pieces.append(text[end:start])
            end = stop
        first, *others = [*pieces, text[end:]]
        return [first, *(piece.lstrip() for piece in others)]

    def _removed(self, text: str, matches: Matches) -> Iterator[tuple[int, int, int]]:
        """(start, end, its first match) of every stretch to be removed; those that touch are one."""
        sentences = np.array([0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)])  # where one may begin or end
        around = self._options.surround_chars
        starts = sentences[np.searchsorted(sentences, np.maximum(matches.starts - around, 0), side="right") - 1]
        stops = sentences[np.searchsorted(sentences, np.minimum(matches.ends + around, len(text)))]
        stops = np.maximum.accumulate(stops)
        firsts = np.flatnonzero(np.append(True, starts[1:] > stops[:-1]))
        lasts = np.append(firsts[1:], starts.size) - 1
        return zip(starts[firsts].tolist(), stops[lasts].tolist(), firsts.tolist(), strict=True)
