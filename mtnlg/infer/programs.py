"""The compiled programs of an engine, and what lies on the devices between them: the cache, and of every row what its next token needs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.infer.sampling import History, Sampling, logprobs, sample
from mtnlg.model import cache as caches

EVERYWHERE = P()


class Rows(NamedTuple):
    """Arrays [B] and [B, V]: each row's last token, which is not in the cache yet, its position, tokens dropped before it, and settings."""

    tokens_B: jax.Array
    positions_B: jax.Array
    dropped_B: jax.Array
    sampling: Sampling
    history: History


class Told(NamedTuple):
    """Each row's new token [B], its log-probability [B], the likeliest ids [B, K] and their log-probabilities: zeros if nobody asks."""

    tokens_B: jax.Array
    logprobs_B: jax.Array
    likeliest_BK: jax.Array
    likeliest_logprobs_BK: jax.Array


class Beginning(NamedTuple):
    """Host arrays [R, ...] for rows whose prompt has been read. row: of the engine, or its number of rows for none.

    again: the row's text goes on after it slid, with the history that it has.
    """

    row_R: np.ndarray
    positions_R: np.ndarray
    dropped_R: np.ndarray
    again_R: np.ndarray
    sampling: Sampling
    in_prompt_RV: np.ndarray
    bias_RV: np.ndarray


class Programs:
    """Prefill, decode and what is between, for a fixed number of rows: a row's numbers never depend on what the others hold."""

    def __init__(self, config: schema.Config, mesh: Mesh, laid: spmd.Laid, num_rows: int, num_ids: int, int8_cache: bool):
        self.config, self.mesh, self.num_rows, self.num_ids, self.int8_cache = config, mesh, num_rows, num_ids, int8_cache
        self.everywhere, self.in_place = NamedSharding(mesh, P()), NamedSharding(mesh, spmd.CACHE)
        one, all_rows = self._chunk(spmd.read(config, mesh, laid, one_row=True)), self._step(spmd.read(config, mesh, laid))
        self.chunk = jax.jit(one, donate_argnums=5, out_shardings=(self.everywhere, self.in_place))
        self.forced = jax.jit(self._forced(spmd.read(config, mesh, laid, one_row=True)), donate_argnums=5)
        self.begin = jax.jit(self._begin, donate_argnums=0, out_shardings=self.everywhere)
        self.step = jax.jit(all_rows, donate_argnums=(1, 2), out_shardings=(self.everywhere, self.in_place, self.everywhere))
        self.copy_prefix = jax.jit(spmd.copy_prefix(mesh), donate_argnums=0, out_shardings=self.in_place)
        self.made_empty = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=self.in_place)
        self.grown = jax.jit(self._grown, static_argnums=1, out_shardings=self.in_place)

    def put(self, tree, spec: P = EVERYWHERE):
        """Host arrays, the same in every process, as global ones; spec is that of their first axes."""
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda a: jax.make_array_from_callback(np.shape(a), sharding, np.asarray(a).__getitem__), tree)

    def empty_cache(self, num_slots: int, num_rows: int | None = None):
        """num_rows: None: the engine's."""
        return self.made_empty(num_slots, num_rows or self.num_rows)

    def _empty(self, num_slots: int, num_rows: int):
        dtype = jnp.dtype(self.config.train.compute_dtype)
        return caches.empty(self.config.model, num_rows, num_slots, dtype, self.config.mesh.tensor, self.int8_cache)

    def empty_rows(self) -> Rows:
        """All rows idle."""
        shape = (self.num_rows, self.num_ids)
        zeros_B = np.zeros(self.num_rows, np.int32)
        history = History(np.zeros(shape, bool), np.zeros(shape, np.int32), np.zeros(shape, np.float32))
        sampling = sampling_of([{}] * self.num_rows)
        return self.put(Rows(zeros_B, zeros_B, zeros_B, sampling, history))

    def _grown(self, cache, num_slots: int):
        """The cache with more slots."""
        more = num_slots - cache.num_slots
        return jax.tree.map(lambda a: jnp.pad(a, [(0, 0)] * 3 + [(0, more), (0, 0)]), cache)

    def _chunk(self, read):
        def chunk(params, tokens_RL, positions_RL, row_R, places_R, cache):
            """Reads a chunk of a prompt in one row of each group of devices: (logits [R, V] of one of its places, cache)."""
            logits_RPV, cache = read(params, tokens_RL, positions_RL, row_R, places_R[:, None], cache)
            return logits_RPV[:, 0, : self.num_ids], cache

        return chunk

    def _forced(self, read):
        def forced(params, tokens_RL, positions_RL, next_RL, row_R, cache):
            """Reads a chunk of one text, the same in all groups of devices: (what is told of the given next tokens [L], cache)."""
            places_RL = jnp.broadcast_to(jnp.arange(tokens_RL.shape[1]), tokens_RL.shape)
            logits_RLV, cache = read(params, tokens_RL, positions_RL, row_R, places_RL, cache)
            return tell(logits_RLV[0, :, : self.num_ids], next_RL[0], True), cache

        return forced

    def _begin(self, rows: Rows, logits_RV, beginning: Beginning, with_logprobs):
        """The first token after a prompt: (rows, told [R])."""
        at, again = beginning.row_R, beginning.again_R
        old = jax.tree.map(lambda a: a.at[at].get(mode="clip"), rows.history)
        fresh = History(beginning.in_prompt_RV, jnp.zeros_like(old.counts_BV), beginning.bias_RV)
        history = jax.tree.map(lambda a, b: jnp.where(again[:, None], a, b), old, fresh)
        tokens_R = sample(logits_RV, beginning.sampling, history, beginning.positions_R + beginning.dropped_R)
        history = history.after(tokens_R)
        new = Rows(tokens_R, beginning.positions_R, beginning.dropped_R, beginning.sampling, history)
        rows = jax.tree.map(lambda a, b: a.at[at].set(b, mode="drop"), rows, new)
        return rows, tell(logits_RV, tokens_R, with_logprobs)

    def _step(self, read):
        def step(params, rows: Rows, cache, active_B, with_logprobs):
            """One token more for every active row: (rows, cache, told)."""
            positions_B = jnp.where(active_B, rows.positions_B, caches.IDLE)
            zeros_B = jnp.zeros_like(positions_B)
            logits_BPV, cache = read(params, rows.tokens_B[:, None], positions_B[:, None], zeros_B, zeros_B[:, None], cache)
            logits_BV = logits_BPV[:, 0, : self.num_ids]
            tokens_B = sample(logits_BV, rows.sampling, rows.history, rows.positions_B + 1 + rows.dropped_B)
            tokens_B = jnp.where(active_B, tokens_B, rows.tokens_B)
            history = rows.history.after(tokens_B, active_B)
            rows = rows._replace(tokens_B=tokens_B, positions_B=rows.positions_B + active_B, history=history)
            return rows, cache, tell(logits_BV, tokens_B, with_logprobs)

        return step


def tell(logits_BV, tokens_B, with_logprobs) -> Told:
    """Of the model's own logits, and the tokens that follow."""

    def nothing():
        shapes = jax.eval_shape(logprobs, logits_BV, tokens_B)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return Told(tokens_B, *jax.lax.cond(with_logprobs, lambda: logprobs(logits_BV, tokens_B), nothing))


DTYPES = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32, "seed": np.uint32}
NEUTRAL = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 0, "repetition_penalty": 1}


def sampling_of(settings: list[dict]) -> Sampling:
    """Host arrays of the settings of each row; what is not named changes nothing."""
    names = Sampling._fields
    return Sampling(*(np.array([s.get(name, NEUTRAL.get(name, 0)) for s in settings], DTYPES.get(name, np.float32)) for name in names))
