"""Beam search: the sequences of the largest probability that are found by going on from a few at a time.

As in tensor2tensor and Wu et al. 2016 (arXiv 1609.08144, section 7), with another length penalty: a hypothesis is worth its log-probability
over length ** length_penalty, its length with the token that ends it.
"""

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np


class Hypothesis(NamedTuple):
    """Ids written, without the one that ended them, and the log-probability of them all. Fewer than were asked for: it has ended."""

    ids: list[int]
    logprob: float


class Rows(Protocol):
    """W rows of a model, which all begin with the prompt."""

    vocab_size: int

    def likeliest(self, totals_W: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(totals [count], row * vocab_size + id [count]) of the likeliest next tokens of all rows, best first.

        A total is that of the row, with the token's log-probability added; of equal ones the lower number comes first.
        """

    def follow(self, rows_W: np.ndarray, ids_W: np.ndarray) -> None:
        """Row w becomes what row rows_W[w] was, followed by ids_W[w]."""


def search(rows: Rows, width: int, max_new_tokens: int, end_ids: Collection[int] = (), length_penalty: float = 1.0) -> list[Hypothesis]:
    """At most `width` hypotheses, best first. length_penalty 0: by their log-probability alone; the larger, the longer they are.

    Of equal ones the one that ended first comes first, then the one of the better row, then that of the lower id.
    """
    finished: list[tuple[float, Hypothesis]] = []
    written: list[list[int]] = [[]]  # of the live rows
    totals_W = np.full(width, -np.inf, np.float32)
    totals_W[0] = 0

    def worth(total: float, length: int) -> float:
        return total / length**length_penalty

    def finish(total: float, length: int, ids: list[int]) -> None:
        finished.append((worth(total, length), Hypothesis(ids, total)))
        finished.sort(key=lambda pair: -pair[0])
        del finished[width:]

    for length in range(1, max_new_tokens + 1):
        # So many that `width` of them go on, though every row may end with each of the end ids.
        count = min(width * (1 + len(end_ids)), width * rows.vocab_size)
        live: list[tuple[float, int, int]] = []
        for total, choice in zip(*rows.likeliest(totals_W, count), strict=True):
            row, id = divmod(int(choice), rows.vocab_size)
            if np.isneginf(total):
                break
            if id in end_ids:
                finish(float(total), length, written[row])
            elif len(live) < width:
                live.append((float(total), row, id))
        written = [[*written[row], id] for _, row, id in live]
        totals_W = np.full(width, -np.inf, np.float32)
        totals_W[: len(live)] = [total for total, _, _ in live]
        if length == max_new_tokens:
            for (total, _, _), ids in zip(live, written, strict=True):
                finish(total, length, ids)
            break
        # What can still come: log-probabilities only fall, and with length the worth of one changes one way only.
        if not live or (len(finished) == width and finished[-1][0] >= max(worth(live[0][0], n) for n in (length + 1, max_new_tokens))):
            break
        filled = [*live, *[live[0]] * (width - len(live))]
        rows.follow(np.array([row for _, row, _ in filled], np.int32), np.array([id for _, _, id in filled], np.int32))
    return [hypothesis for _, hypothesis in finished]
