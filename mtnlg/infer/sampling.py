"""Choosing the next token from logits: greedy, temperature, top-k, top-p. Each row has its own settings and its own key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import prng


class Sampling(NamedTuple):
    """Settings of each row, arrays [B]. temperature 0: greedy; top_k 0 and top_p 1: everything is allowed."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    seed: jax.Array


def allowed(logits_BV, top_k_B, top_p_B):
    """[B, V] bool: the top_k likeliest tokens, and of those the fewest likeliest whose probabilities reach top_p.

    Nucleus: Holtzman et al. 2020, arXiv 1904.09751, section 3.1. Ties at the border are all kept.
    """
    vocab_size = logits_BV.shape[-1]
    sorted_BV = -jnp.sort(-logits_BV, axis=-1)
    k_B = jnp.where(top_k_B > 0, jnp.minimum(top_k_B, vocab_size), vocab_size)
    kth_B1 = jnp.take_along_axis(sorted_BV, k_B[:, None] - 1, axis=-1)
    within_k = jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf)
    probs_BV = jax.nn.softmax(within_k, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # probability of everything likelier
    # Rounding can fill the sum before its end: top_p 1 is told apart.
    inside_BV = (before_BV < top_p_B[:, None]) | (top_p_B[:, None] >= 1)
    border_B1 = jnp.take_along_axis(sorted_BV, jnp.maximum(jnp.sum(inside_BV, axis=-1, keepdims=True) - 1, 0), axis=-1)
    return (logits_BV >= kth_B1) & (logits_BV >= border_B1)


def sample(logits_BV, sampling: Sampling, positions_B):
    """The next token of each row [B] int32. A row's draw depends on its seed and position alone, not on its neighbours."""
    greedy_B = jnp.argmax(logits_BV, axis=-1)
    warm = logits_BV / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    warm = jnp.where(allowed(warm, sampling.top_k, sampling.top_p), warm, -jnp.inf)
    keys = jax.vmap(lambda seed, position: prng.key(seed, prng.SAMPLING, position))(sampling.seed, positions_B)
    drawn_B = jax.vmap(jax.random.categorical)(keys, warm)
    return jnp.where(sampling.temperature > 0, drawn_B, greedy_B).astype(jnp.int32)
