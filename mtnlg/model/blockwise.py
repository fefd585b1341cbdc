"""Causal attention over a sequence in parts on several devices: one block of keys and values at a time, the softmax merged as it goes.

Ring attention (Liu et al. 2023, arXiv 2310.01889) with parts in zigzag: a device of rank i among c has chunks i and 2c-1-i of its
sequences, and so does the block of keys and values that starts on rank j. Of the four pairs (half of the queries, half of the keys)
two hold all that the causal mask leaves, whatever i and j != i are, and three of the own block's: the same work everywhere, every step.

No scores beyond one pair's exist at a time, none are kept: the backward makes them again from the logarithm of the softmax's sum.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mtnlg.core import schema
from mtnlg.core.collectives import ContextShard
from mtnlg.core.prng import Dropout
from mtnlg.model.attention_core import Places, merge, nothing_seen, penalty_of, visible, weigh

PLACES_DIM = 2  # of keys and values [2, B, S, G, K]
KEYS, GRADIENTS = "keys and values, on their way round the ring", "gradients of keys and values, on their way round the ring"
ALL_KEYS = "keys and values, of all places"


class Known(NamedTuple):
    """What beside queries, keys and values decides the weights; keys' places are those of all devices, part behind part.

    slopes: ALiBi's, or None; heads: global numbers.
    """

    places: Places
    slopes_H: jax.Array | None
    heads_H: jax.Array
    dropout: Dropout | None


def attend_in_blocks(model: schema.Model, context: ContextShard, q_BLHK, k_BLGK, v_BLGK, known: Known):
    """softmax(q kᵀ / sqrt(K) + penalty) v over the keys seen on all devices, for this device's queries: [B, L, H, K]."""
    kv = jnp.stack([k_BLGK, v_BLGK])
    return _attend(model, context, q_BLHK, kv if context.ring else context.all_keys(kv, PLACES_DIM, ALL_KEYS), known)


def pairs_with_own():
    """The pairs (half of the queries, half of the keys) to compute with the keys of one's own places."""
    return (0, 0), (1, 1), (1, 0)


def pairs_with(block, rank):
    """As `pairs_with_own`, for rank `rank` with the block of another rank, which may be traced.

    The later queries see the earlier keys of every block. Beyond that the earlier queries see the earlier keys of an earlier rank, and
    the later queries the later keys of a later rank.
    """
    half = jnp.where(block < rank, 0, 1)
    return (1, 0), (half, half)


def _go_round(context: ContextShard, kv, carry, travelling, one):
    """The steps of a device: `one(carry, travelling, kv, block, half of the queries, half of the keys)` -> (carry, travelling), the own
    block first, where every query sees itself. What travels arrives with each block and comes home in the end.

    Loops, so that only one pair's scores exist. The last step stands behind its loop, since after that no keys are needed.
    """
    rank, move = context.rank(), (context.next_part if context.ring else lambda x, why: x)

    def with_pairs(carry, travelling, kv, block, pairs):
        return jax.lax.scan(lambda state, pair: (one(*state, kv, block, *pair), None), (carry, travelling), jnp.asarray(pairs))[0]

    def with_block(carry, travelling, kv, step):
        block = (rank - step) % context.size
        return with_pairs(carry, move(travelling, GRADIENTS), kv, block, pairs_with(block, rank))

    def step(state, number):
        kv, carry, travelling = state
        return (move(kv, KEYS), *with_block(carry, travelling, kv, number)), None

    state = (move(kv, KEYS), *with_pairs(carry, travelling, kv, rank, pairs_with_own()))
    if context.size > 2:
        state, _ = jax.lax.scan(step, state, jnp.arange(1, context.size - 1))
    kv, carry, travelling = state
    carry, travelling = with_block(carry, travelling, kv, context.size - 1)
    return carry, move(travelling, GRADIENTS)


def _chunk(x, number, length: int, dim: int):
    """Chunk `number`, traced or not, of `length` places in `dim`."""
    return jax.lax.dynamic_slice_in_dim(x, number * length, length, dim)


def _with_chunk(x, chunk, number, dim: int):
    return jax.lax.dynamic_update_slice_in_dim(x, chunk, number * chunk.shape[dim], dim)


def _known_in_layer(known: Known, x) -> Known:
    """`known`, tied to x of this layer: else the masks of all steps, together L places wide, would be made before the loop over layers."""
    _, places = jax.lax.optimization_barrier((x, known.places._replace(rotary=None)))
    return known._replace(places=places)


def _weigh(model: schema.Model, known: Known, query_half, block, key_half, shift_BHL):
    """`weigh` for one pair of `block`, as a function of its queries and its keys and values."""
    places, keys = known.places, 2 * block + key_half
    length = places.positions_BL.shape[1] // 2
    own = (_chunk(x, query_half, length, 1) for x in (places.positions_BL, places.segment_ids_BL))
    theirs = (_chunk(x, keys, length, 1) for x in (places.key_positions_BS, places.key_segments_BS))
    seen_BLS, distance_BLS = visible(model, Places(*own, None, *theirs))
    penalty_BHLS = penalty_of(distance_BLS, known.slopes_H)
    dropout = known.dropout
    if dropout is not None:
        queries_L, keys_S = _chunk(dropout.queries_L, query_half, length, 0), _chunk(dropout.keys_S, keys, length, 0)
        dropout = dropout._replace(queries_L=queries_L, keys_S=keys_S)

    def of(q_BLHK, kv):
        return weigh(q_BLHK, *kv, seen_BLS, penalty_BHLS, dropout, known.heads_H, model.dropout_attention, shift_BHL)

    return of


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(model, context, q_BLHK, kv, known):
    return _attend_forward(model, context, q_BLHK, kv, known)[0]


def _attend_forward(model, context, q_BLHK, kv, known):
    """kv [2, B, S, G, K]: this device's, in a ring, or all. Kept: the arguments, what comes out, and the logarithm of the sums."""
    num_rows, length, num_heads, head_dim = q_BLHK.shape
    half, dtype, in_layer = length // 2, jnp.promote_types(q_BLHK.dtype, jnp.float32), _known_in_layer(known, q_BLHK)

    def one(sums, travelling, kv, block, queries, keys):
        place = keys if context.ring else 2 * block + keys
        of = _weigh(model, in_layer, queries, block, keys, None)
        new = of(_chunk(q_BLHK, queries, half, 1), _chunk(kv, place, half, PLACES_DIM))
        merged = merge([_chunk(x, queries, half, 2) for x in sums], new)
        return tuple(_with_chunk(x, chunk, queries, 2) for x, chunk in zip(sums, merged, strict=True)), travelling

    nothing = nothing_seen((num_rows, num_heads, length), head_dim, dtype)
    (out_BHLK, sum_BHL, shift_BHL), _ = _go_round(context, kv, nothing, None, one)
    out_BLHK = (out_BHLK / sum_BHL[..., None]).transpose(0, 2, 1, 3).astype(q_BLHK.dtype)
    # Named for the policies that choose what is kept (model/split.py): these two, and nothing of the loops above.
    out_BLHK, log_sum_BHL = (checkpoint_name(x, "attention in blocks") for x in (out_BLHK, shift_BHL + jnp.log(sum_BHL)))
    return out_BLHK, (q_BLHK, kv, known, out_BLHK, log_sum_BHL)


def _attend_backward(model, context, kept, g_BLHK):
    """With w the weights divided by their sum, their gradient is w (g v - g out): `weigh` pulls back g for its first sum, -g out for
    the second. Gradients of keys and values are added up in at least float32, on their way round the ring with them."""
    q_BLHK, kv, known, out_BLHK, log_sum_BHL = kept
    half, dtype, in_layer = q_BLHK.shape[1] // 2, log_sum_BHL.dtype, _known_in_layer(known, g_BLHK)
    g_BHLK = g_BLHK.transpose(0, 2, 1, 3).astype(dtype)
    g_sum_BHL = -jnp.sum(g_BHLK * out_BLHK.transpose(0, 2, 1, 3).astype(dtype), axis=-1)

    def one(dq_BLHK, dkv, kv, block, queries, keys):
        place = keys if context.ring else 2 * block + keys
        shift_BHL, *g = (_chunk(x, queries, half, 2) for x in (log_sum_BHL, g_BHLK, g_sum_BHL))
        of = _weigh(model, in_layer, queries, block, keys, shift_BHL)
        sums = lambda q, kv: of(q, kv)[:2]  # noqa: E731
        _, pull_back = jax.vjp(sums, _chunk(q_BLHK, queries, half, 1), _chunk(kv, place, half, PLACES_DIM))
        dq, dkv_chunk = pull_back(tuple(g))
        dq_BLHK = _with_chunk(dq_BLHK, _chunk(dq_BLHK, queries, half, 1) + dq, queries, 1)
        return dq_BLHK, _with_chunk(dkv, _chunk(dkv, place, half, PLACES_DIM) + dkv_chunk, place, PLACES_DIM)

    dq_BLHK, dkv = _go_round(context, kv, jnp.zeros(q_BLHK.shape, dtype), jnp.zeros(kv.shape, dtype), one)
    return dq_BLHK.astype(q_BLHK.dtype), dkv.astype(kv.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)
