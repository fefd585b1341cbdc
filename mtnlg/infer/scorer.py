"""Scores and hidden states of token ids, however long and however many: cut into windows, packed into batches of few shapes.

What is longer than model.seq_len is read in windows of that length, also where the positions would allow more. Every place counts once,
in a window in which at least half a window stands before it, or all there is.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtnlg import spmd
from mtnlg.infer.engine import Engine, power_of_two
from mtnlg.parallel import mesh as meshes

TOKENS_AT_ONCE = 1 << 13  # of a device; the rows of a batch are as many as fit, at least one


class Scores(NamedTuple):
    """Of each scored token: negative log-likelihood in nats, float64, and whether it was the likeliest one, bool."""

    nll: np.ndarray
    greedy: np.ndarray


class Window(NamedTuple):
    """ids[begin:end] of a row are read, and those from `first` on count."""

    row: int
    begin: int
    first: int
    end: int


def windows(row: int, first: int, end: int, length: int) -> Iterator[Window]:
    """Windows of at most `length` in which every place of [first, end) counts once."""
    while first < end:
        begin = max(0, min(first - length // 2, end - length))
        yield Window(row, begin, first, min(begin + length, end))
        first = begin + length


class Scorer:
    """Reads with the weights of an engine, as they lie there."""

    def __init__(self, engine: Engine):
        self.engine = engine
        config = dataclasses.replace(engine.config, mesh=dataclasses.replace(engine.config.mesh, zero=0))
        self._score, self._pooled = (jax.jit(program(config, engine.mesh, engine.laid)) for program in (spmd.score, spmd.pooled))

    def scores(self, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Scores]:
        """Of each row, the scores of ids[first:], each token after all that stand before it in its window. first is 1 or more.

        Raises ConfigError for ids beyond the vocabulary.
        """
        counts = [len(ids) - first for ids, first in zip(rows, firsts, strict=True)]
        found = [Scores(np.empty(count), np.empty(count, bool)) for count in counts]
        # Place p says what comes at p + 1.
        for window, results in self._read(self._score, rows, [(first - 1, len(ids) - 1) for ids, first in zip(rows, firsts, strict=True)]):
            start, (begin, first, end) = firsts[window.row] - 1, window[1:]
            for kept, result_L in zip(found[window.row], results, strict=True):
                kept[first - start : end - start] = result_L[first - begin : end - begin]
        return found

    def means(self, rows: Sequence[Sequence[int]], firsts: Sequence[int]) -> np.ndarray:
        """[rows, D] float32: of each row, the mean of the hidden states after the final norm over ids[first:], at least one.

        Raises ConfigError for ids beyond the vocabulary.
        """
        spans = [(first, len(ids)) for ids, first in zip(rows, firsts, strict=True)]
        sums = np.zeros((len(rows), self.engine.config.model.d_model))
        for window, (sum_D,) in self._read(self._pooled, rows, spans):
            sums[window.row] += sum_D
        return (sums / np.array([[end - first] for first, end in spans]).reshape(-1, 1)).astype(np.float32)

    def _read(self, program: Callable, rows, spans) -> Iterator[tuple[Window, list[np.ndarray]]]:
        """Each window of the spans (first, end) of the rows, with its row of the program's results.

        A batch is sent before the last one's results are awaited.
        """
        waiting: list[tuple[list[Window], list]] = []
        for batch_windows, width in self._batches(rows, spans):
            fields = self._fields(rows, batch_windows, width)
            waiting.append((batch_windows, jax.tree.leaves(program(self.engine.params, meshes.put(self.engine.mesh, fields)))))
            if len(waiting) > 1:
                yield from _by_window(*waiting.pop(0))
        for sent in waiting:
            yield from _by_window(*sent)

    def _batches(self, rows, spans) -> Iterator[tuple[list[Window], int]]:
        """(the windows of a batch, its length): those of like length together."""
        by_width: dict[int, list[Window]] = {}
        for row, (ids, span) in enumerate(zip(rows, spans, strict=True)):
            self.engine.check_ids(ids, "text")
            for window in windows(row, *span, self.engine.config.model.seq_len):
                by_width.setdefault(self._width(window.end - window.begin), []).append(window)
        for width, same in sorted(by_width.items()):
            at_once = self.engine.config.mesh.num_sample_shards * max(TOKENS_AT_ONCE // width, 1)
            for start in range(0, len(same), at_once):
                yield same[start : start + at_once], width

    def _width(self, length: int) -> int:
        """The length of the batch that a window lies in: a power of two that can be parted over the mesh, at most model.seq_len."""
        mesh = self.engine.config.mesh
        parts = math.lcm(2 * mesh.context if mesh.context > 1 else 1, mesh.context * mesh.tensor if mesh.sequence_parallel else 1)
        return min(-(-power_of_two(length, 16) // parts) * parts, self.engine.config.model.seq_len)

    def _fields(self, rows, batch_windows: list[Window], width: int) -> dict:
        """A batch [B, width]; for each group of devices as many rows, a power of two, those without a window all padding."""
        shards = self.engine.config.mesh.num_sample_shards
        num_rows = shards * (1 << (-(-len(batch_windows) // shards) - 1).bit_length())
        shape = (num_rows, width)
        fields = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids")} | {
            "weights": np.zeros(shape, np.float32)
        }
        fields["positions"] = np.tile(np.arange(width, dtype=np.int32), (num_rows, 1))
        for place, (row, begin, first, end) in enumerate(batch_windows):
            targets = rows[row][begin + 1 : end + 1]
            fields["tokens"][place, : end - begin] = rows[row][begin:end]
            fields["targets"][place, : len(targets)] = targets
            fields["segment_ids"][place, : end - begin] = 1
            fields["weights"][place, first - begin : end - begin] = 1
        return fields


def _by_window(batch_windows: list[Window], results: list) -> Iterator[tuple[Window, list[np.ndarray]]]:
    hosted = [np.asarray(result) for result in results]
    for place, window in enumerate(batch_windows):
        yield window, [result[place] for result in hosted]
