"""Choosing the next token from logits [B, V]. Each row has its own settings and its own key; what no row asks for is not computed.

Bias and penalties come first; then a greedy row takes the likeliest token, and another is warmed by its temperature, limited by top-k,
top-p and min-p, and drawn from.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import prng
from mtnlg.infer.request import MAX_LIKELIEST

BLOCK = 128  # tokens from which the last of two draws is made


class Sampling(NamedTuple):
    """Settings of each row, arrays [B], as in `request.Request`."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    seed: jax.Array


class History(NamedTuple):
    """Of each row and token: whether the prompt has it, how often it was written since (int32), what is added to its logit (float32)."""

    in_prompt_BV: jax.Array
    counts_BV: jax.Array
    bias_BV: jax.Array

    def after(self, tokens_B, counts_B=1) -> "History":
        """With these tokens written, so many times; several of each row, if they are [..., B]."""
        return self._replace(counts_BV=self.counts_BV.at[jnp.arange(self.counts_BV.shape[0]), tokens_B].add(counts_B))


def penalised(logits_BV, sampling: Sampling, history: History):
    """[B, V] float32: logits with the bias added, then the penalties, as `request.Request` defines them."""
    biased_BV = logits_BV.astype(jnp.float32) + history.bias_BV
    repetition, presence, frequency = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty

    def penalties():
        written_BV = history.counts_BV > 0
        scaled_BV = jnp.where(biased_BV > 0, biased_BV / repetition[:, None], biased_BV * repetition[:, None])
        repeated_BV = jnp.where(history.in_prompt_BV | written_BV, scaled_BV, biased_BV)
        return repeated_BV - presence[:, None] * written_BV - frequency[:, None] * history.counts_BV

    return jax.lax.cond(jnp.any((repetition != 1) | (presence != 0) | (frequency != 0)), penalties, lambda: biased_BV)


def allowed(logits_BV, top_k_B, top_p_B, min_p_B):
    """[B, V] bool: of the top_k likeliest tokens, the fewest likeliest whose probabilities reach top_p, as far as min_p allows them.

    Nucleus: Holtzman et al. 2020, arXiv 1904.09751, section 3.1; min_p: at least that part of the largest probability (Nguyen et al.
    2024, arXiv 2407.01082, section 4). Ties at a border are all kept.
    """
    largest_B1, ranks_BV = jnp.max(logits_BV, axis=-1, keepdims=True), _ordered(logits_BV)

    def within_top_k():
        return _heaviest(ranks_BV, jnp.ones_like(logits_BV), jnp.where(top_k_B > 0, top_k_B, jnp.inf))

    def within_top_p():
        masses_BV = jnp.where(kept_BV, jnp.exp(logits_BV - largest_B1), 0)
        # Rounding can fill the sum before its end: top_p 1 is told apart.
        return kept_BV & _heaviest(ranks_BV, masses_BV, jnp.where(top_p_B < 1, top_p_B * jnp.sum(masses_BV, axis=-1), jnp.inf))

    kept_BV = jax.lax.cond(jnp.any(top_k_B > 0), within_top_k, lambda: jnp.ones_like(logits_BV, bool))
    kept_BV = jax.lax.cond(jnp.any(top_p_B < 1), within_top_p, lambda: kept_BV)
    return kept_BV & (logits_BV >= largest_B1 + jnp.log(min_p_B)[:, None])


def _ordered(x):
    """uint32 in the order of the float32 x: the bits, those of negative numbers turned round. The two zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _heaviest(ranks_BV, weights_BV, limits_B):
    """[B, V] bool: the tokens for which the weights of all that rank higher sum to less than the limit, and the highest in any case.

    The lowest such rank is found by halving, without sorting: the sum of more weights is never less, rounded or not. Always 32 times, for
    its bits: to ask whether all rows are done would let an accelerator wait for the answer.
    """

    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        fits_B = jnp.sum(jnp.where(ranks_BV > middle_B[:, None], weights_BV, 0), axis=-1) < limits_B
        return jnp.where(fits_B, low_B, middle_B + 1), jnp.where(fits_B, middle_B, high_B)

    highest_B = jnp.max(ranks_BV, axis=-1)
    _, lowest_B = jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(highest_B), highest_B))
    return ranks_BV >= lowest_B[:, None]


def _warmed(logits_BV, sampling: Sampling):
    """Penalised logits over the temperature, -inf where they are not allowed."""
    warm_BV = logits_BV / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    return jnp.where(allowed(warm_BV, sampling.top_k, sampling.top_p, sampling.min_p), warm_BV, -jnp.inf)


def row_keys(seed_B, purpose: int, positions_B):
    """A key [B] for each row: of its seed, what it is for (core/prng.py) and a position."""
    return jax.vmap(lambda seed, position: prng.key(seed, purpose, position))(seed_B, positions_B)


def draw(logits_BV, keys_B):
    """[B] int32 from the softmax of each row: a block of tokens first, then one of it. A whole row would need V random numbers."""
    num_rows, vocab_size = logits_BV.shape
    filled = jnp.pad(logits_BV, ((0, 0), (0, -vocab_size % BLOCK)), constant_values=-jnp.inf).reshape(num_rows, -1, BLOCK)
    keys = jax.vmap(jax.random.split)(keys_B)
    block_B = jax.vmap(jax.random.categorical)(keys[:, 0], jax.nn.logsumexp(filled, axis=-1))
    of_block = jnp.take_along_axis(filled, block_B[:, None, None], axis=1)[:, 0]
    return (block_B * BLOCK + jax.vmap(jax.random.categorical)(keys[:, 1], of_block)).astype(jnp.int32)


def likeliest(logits_BV):
    """[B] int32: the first of the largest; the last id where a logit is NaN. `jnp.argmax` takes XLA:CPU three times as long."""
    last, largest_B1 = logits_BV.shape[-1] - 1, jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BV == largest_B1, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def sample(logits_BV, sampling: Sampling, history: History, positions_B):
    """The next token of each row [B] int32. A row's draw depends on its seed and position alone, not on its neighbours."""
    logits_BV = penalised(logits_BV, sampling, history)
    greedy_B = likeliest(logits_BV)

    def drawn():
        drawn_B = draw(_warmed(logits_BV, sampling), row_keys(sampling.seed, prng.SAMPLING, positions_B))
        return jnp.where(sampling.temperature > 0, drawn_B, greedy_B)

    return jax.lax.cond(jnp.any(sampling.temperature > 0), drawn, lambda: greedy_B)


def probabilities(logits_BV, sampling: Sampling, history: History):
    """[B, V] float32: what `sample` draws from; of a greedy row, 1 for the token it takes."""
    logits_BV = penalised(logits_BV, sampling, history)
    greedy_BV = jax.nn.one_hot(likeliest(logits_BV), logits_BV.shape[-1], dtype=jnp.float32)

    def warm():
        return jnp.where(sampling.temperature[:, None] > 0, jax.nn.softmax(_warmed(logits_BV, sampling), axis=-1), greedy_BV)

    return jax.lax.cond(jnp.any(sampling.temperature > 0), warm, lambda: greedy_BV)


def logprobs(logits_BV, tokens_B):
    """(log-probability of each row's token [B], the likeliest ids [B, K], their log-probabilities [B, K]), of the model's own distribution.

    K: `request.MAX_LIKELIEST`, at most V.
    """
    logprobs_BV = jax.nn.log_softmax(logits_BV.astype(jnp.float32), axis=-1)
    likeliest_BK, ids_BK = jax.lax.top_k(logprobs_BV, min(MAX_LIKELIEST, logits_BV.shape[-1]))
    return jnp.take_along_axis(logprobs_BV, tokens_B[:, None], axis=-1)[:, 0], ids_BK, likeliest_BK
