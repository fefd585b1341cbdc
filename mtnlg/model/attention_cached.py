"""Attention over the cache: one block of its slots after the other, as far as the texts go, the softmax merged as it goes.

A block in which a query sees nothing changes none of its bits, so that what a row computes depends neither on how far other rows have
come nor on how many slots there are.
"""

import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.model.attention_core import Places, merge, nothing_seen, penalty_of, visible, weigh
from mtnlg.model.cache import LayerCache


def attend_cached(model: schema.Model, q_BLHK, cache: LayerCache, slopes_H):
    """softmax(q kᵀ / sqrt(K) + penalty) v over the tokens of a query's row up to its own: [B, L, H, K]. Idle queries: numbers of no use."""
    block, positions_BL = cache.cache.block, cache.positions_BL
    alike_BL = jnp.ones_like(positions_BL)

    def one(number, sums):
        slots_S = number * block + jnp.arange(block)
        slots_BS = jnp.broadcast_to(slots_S, (positions_BL.shape[0], block))
        seen_BLS, distance_BLS = visible(model, Places(positions_BL, alike_BL, None, slots_BS, jnp.ones_like(slots_BS)))
        keys_values = cache.read(number, q_BLHK.dtype)
        return merge(sums, weigh(q_BLHK, *keys_values, seen_BLS, penalty_of(distance_BLS, slopes_H), None, None, 0.0))

    num_blocks = jnp.max(positions_BL) // block + 1
    num_rows, length, num_heads, head_dim = q_BLHK.shape
    sums = nothing_seen((num_rows, num_heads, length), head_dim, jnp.promote_types(q_BLHK.dtype, jnp.float32))
    out_BHLK, sum_BHL, _ = jax.lax.fori_loop(0, num_blocks, one, sums)
    return (out_BHLK / sum_BHL[..., None]).transpose(0, 2, 1, 3).astype(q_BLHK.dtype)
