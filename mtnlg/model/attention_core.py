"""The core of attention: what a query may see, and the softmax over it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.core.prng import Dropout


class Places(NamedTuple):
    """Where tokens stand: the position in their segment, the segment, and the rotary tables of the positions (or None).

    The same of their keys, of all devices that share the sequence, part behind part.
    """

    positions_BL: jax.Array
    segment_ids_BL: jax.Array
    rotary: tuple[jax.Array, jax.Array] | None
    key_positions_BS: jax.Array
    key_segments_BS: jax.Array


def visible(model: schema.Model, places: Places):
    """[B, L, S] bool: same segment, not later, and within the sliding window. The only rule of visibility. And the distances."""
    distance_BLS = places.positions_BL[:, :, None] - places.key_positions_BS[:, None, :]
    seen = (places.segment_ids_BL[:, :, None] == places.key_segments_BS[:, None, :]) & (distance_BLS >= 0)
    if model.sliding_window is not None:
        seen &= distance_BLS < model.sliding_window
    return seen, distance_BLS


def penalty_of(distance_BLS, slopes_H):
    """[B, H, L, S] what ALiBi takes from the scores, or None without slopes."""
    return None if slopes_H is None else slopes_H[:, None, None] * distance_BLS[:, None]


def weigh(q_BLHK, k_BSGK, v_BSGK, seen_BLS, penalty_BHLS, dropout: Dropout | None, heads_H, rate: float, shift_BHL=None):
    """The sums of a softmax before its division: (sum of w v [B, H, L, K], sum of w [B, H, L], the shift [B, H, L]).

    w = exp(q kᵀ / sqrt(K) + penalty - shift) over the keys seen, with the largest score as the shift (None); query head h reads
    key/value head h // (H/G). In at least float32. heads: the global numbers of the query heads, which name the masks of `dropout`
    at `rate`; only the first sum is dropped from.
    """
    num_rows, length, num_heads, head_dim = q_BLHK.shape
    groups = k_BSGK.shape[2]
    dtype = jnp.promote_types(q_BLHK.dtype, jnp.float32)
    q_BGRLK = q_BLHK.reshape(num_rows, length, groups, num_heads // groups, head_dim).transpose(0, 2, 3, 1, 4)
    k_BGSK, v_BGSK = k_BSGK.transpose(0, 2, 1, 3), v_BSGK.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgrlk,bgsk->bgrls", q_BGRLK, k_BGSK, preferred_element_type=dtype)
    scores_BHLS = scores.reshape(num_rows, num_heads, length, -1) * (head_dim**-0.5)
    if penalty_BHLS is not None:
        scores_BHLS = scores_BHLS - penalty_BHLS
    scores_BHLS = scores_BHLS + jnp.where(seen_BLS, jnp.zeros((), dtype), jnp.finfo(dtype).min / 2)[:, None]  # swallows what it hides
    if shift_BHL is None:
        shift_BHL = jax.lax.stop_gradient(jnp.max(scores_BHLS, axis=-1))
    weights_BHLS = jnp.exp(scores_BHLS - shift_BHL[..., None])
    sum_BHL = jnp.sum(weights_BHLS, axis=-1)
    if dropout is not None:
        weights_BHLS = dropout.attention(weights_BHLS, heads_H, rate)
    weights = weights_BHLS.astype(v_BSGK.dtype).reshape(scores.shape)
    out = jnp.einsum("bgrls,bgsk->bgrlk", weights, v_BGSK, preferred_element_type=dtype)
    return out.reshape(num_rows, num_heads, length, head_dim), sum_BHL, shift_BHL


def merge(ours, theirs):
    """Two results of `weigh` for the same queries and different keys, as one. Where nothing was seen, the shift makes nothing of it."""
    shift = jnp.maximum(ours[2], theirs[2])
    a, b = jnp.exp(ours[2] - shift), jnp.exp(theirs[2] - shift)
    return ours[0] * a[..., None] + theirs[0] * b[..., None], ours[1] * a + theirs[1] * b, shift


def nothing_seen(shape_BHL: tuple, head_dim: int, dtype):
    """What `merge` begins with."""
    zeros = jnp.zeros(shape_BHL, dtype)
    return jnp.zeros((*shape_BHL, head_dim), dtype), zeros, jnp.full(shape_BHL, jnp.finfo(dtype).min, dtype)


def attend(q_BLHK, k_BSGK, v_BSGK, seen_BLS, penalty_BHLS, dropout: Dropout | None, heads_H, rate: float):
    """softmax(q kᵀ / sqrt(K) + penalty) v over the keys seen, [B, L, H, K]; arguments as for `weigh`.

    A query that sees nothing would average everything, so every query must see itself.
    """
    # Divided by their sum at the end, where there are K numbers for a query and not S. That softmax is blind to the shift is exact.
    out_BHLK, sum_BHL, _ = weigh(q_BLHK, k_BSGK, v_BSGK, seen_BLS, penalty_BHLS, dropout, heads_H, rate)
    return (out_BHLK / sum_BHL[..., None]).transpose(0, 2, 1, 3).astype(q_BLHK.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def attend_again(q_BLHK, k_BSGK, v_BSGK, seen_BLS, penalty_BHLS, dropout, heads_H, rate):
    """`attend`, computed again in the backward from its arguments: scores and probabilities are never kept.

    Not `jax.checkpoint`, whose inside a policy around it (`transformer.saved`) would open and keep.
    """
    return attend(q_BLHK, k_BSGK, v_BSGK, seen_BLS, penalty_BHLS, dropout, heads_H, rate)


def _attend_forward(*arguments):
    return attend(*arguments), arguments[:-1]


def _attend_backward(rate, arguments, cotangent):
    qkv, rest = arguments[:3], arguments[3:]
    _, pull_back = jax.vjp(lambda *qkv: attend(*qkv, *rest, rate), *qkv)
    return (*pull_back(cotangent), *(None for _ in rest))


attend_again.defvjp(_attend_forward, _attend_backward)
