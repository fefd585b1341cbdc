"""Beam search: the sequences of the largest probability that are found by going on from a few at a time.

As in tensor2tensor and Wu et al. 2016 (arXiv 1609.08144, section 7), with another length penalty: a hypothesis is worth its log-probability
over length ** length_penalty, its length with the token that ends it.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mtnlg import spmd
from mtnlg.core.errors import ConfigError
from mtnlg.infer import chunks
from mtnlg.infer.engine import Engine
from mtnlg.infer.programs import Programs
from mtnlg.infer.request import Request
from mtnlg.model import cache as caches


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


class Beams:
    """Searches with an engine's model, of which the weights are read as they lie; the cache has `width` rows of its own."""

    def __init__(self, engine: Engine, width: int):
        """Raises ConfigError for a width that is none, and for a mesh whose devices hold different rows."""
        if width < 1:
            raise ConfigError(f"a beam search over {width} rows", "width", "1 or more")
        if engine.num_groups > 1:
            what = f"the rows of a cache would lie in {engine.num_groups} groups of devices, and beams go from any row to any other"
            raise ConfigError(
                what, "--config.mesh", "--config.mesh.data=1 and --config.mesh.replica=1; --config.mesh.tensor parts the model"
            )
        self.engine, self.width, self.vocab_size = engine, width, engine.num_ids
        self.programs = Programs(engine.config, engine.mesh, engine.laid, width, engine.num_ids, engine.programs.int8_cache)
        everywhere, in_place = self.programs.everywhere, self.programs.in_place
        read = spmd.read(engine.config, engine.mesh, engine.laid)

        def going_on(params, rows_W, ids_W, position, cache):
            """(logits [W, V], cache)."""
            cache = jax.tree.map(lambda a: jnp.take(a, rows_W, axis=1), cache)
            zeros_W = jnp.zeros_like(rows_W)
            logits_WPV, cache = read(params, ids_W[:, None], zeros_W[:, None] + position, zeros_W, zeros_W[:, None], cache)
            return logits_WPV[:, 0, : self.vocab_size], cache

        def likeliest(count, logits_WV, totals_W):
            logprobs_WV = jax.nn.log_softmax(logits_WV.astype(jnp.float32), axis=-1)
            return jax.lax.top_k((totals_W[:, None] + logprobs_WV).reshape(-1), count)

        self._going_on = jax.jit(going_on, donate_argnums=4, out_shardings=(everywhere, in_place))
        self._likeliest = jax.jit(likeliest, static_argnums=0)

    def search(
        self, prompt: Sequence[int], max_new_tokens: int, end_ids: Collection[int] = (), length_penalty: float = 1.0
    ) -> list[Hypothesis]:
        """`search` after a prompt. Raises ConfigError for what the model cannot honour."""
        self.engine.check(Request(prompt, max_new_tokens))
        if not abs(length_penalty) <= 10:
            raise ConfigError(f"length_penalty={length_penalty} is out of range", "length_penalty", "-10 to 10; 0 for none")
        self._cache, self._position = self.programs.empty_cache(chunks.num_slots(len(prompt) + max_new_tokens)), len(prompt)
        for start in range(0, len(prompt), caches.BLOCK):
            self._read_chunk(start, prompt[start : start + caches.BLOCK])
        try:
            return search(self, self.width, max_new_tokens, end_ids, length_penalty)
        finally:
            self._cache, self._logits_WV = None, None

    def _read_chunk(self, start: int, ids: Sequence[int]) -> None:
        """In row 0. That the others have read nothing does not matter: they are told to follow it."""
        width = chunks.width(len(ids))
        tokens_RL = np.pad(np.asarray(ids, np.int32), (0, width - len(ids)))[None]
        inputs = tokens_RL, start + np.arange(width, dtype=np.int32)[None], np.zeros(1, np.int32), np.array([len(ids) - 1], np.int32)
        logits_RV, self._cache = self.programs.chunk(self.engine.params, *self.programs.put(inputs, spmd.ROWS), self._cache)
        self._logits_WV = jnp.broadcast_to(logits_RV, (self.width, self.vocab_size))

    def likeliest(self, totals_W: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        totals_C, choices_C = self._likeliest(count, self._logits_WV, self.programs.put(totals_W))
        return np.asarray(totals_C), np.asarray(choices_C)

    def follow(self, rows_W: np.ndarray, ids_W: np.ndarray) -> None:
        inputs = self.programs.put((rows_W, ids_W, np.int32(self._position)))
        self._logits_WV, self._cache = self._going_on(self.engine.params, *inputs, self._cache)
        self._position += 1
