"""Attention: projections, the core, and what a query may see."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.core.collectives import TensorShard
from mtnlg.core.prng import Dropout
from mtnlg.model import positions
from mtnlg.model.cache import LayerCache
from mtnlg.model.layers import Linear, normalise, residual_std


class Places(NamedTuple):
    """Where tokens stand: the position in their segment, the segment, and the rotary tables of the positions (or None)."""

    positions_BL: jax.Array
    segment_ids_BL: jax.Array
    rotary: tuple[jax.Array, jax.Array] | None


def visible(model: schema.Model, queries: Places, key_positions_BS, key_segments_BS):
    """[B, L, S] bool: same segment, not later, and within the sliding window. The only rule of visibility."""
    distance_BLS = queries.positions_BL[:, :, None] - key_positions_BS[:, None, :]
    seen = (queries.segment_ids_BL[:, :, None] == key_segments_BS[:, None, :]) & (distance_BLS >= 0)
    if model.sliding_window is not None:
        seen &= distance_BLS < model.sliding_window
    return seen, distance_BLS


def attend(q_BLHK, k_BSGK, v_BSGK, seen_BLS, penalty_BHLS, dropout: Dropout | None, heads_H, rate: float):
    """softmax(q kᵀ / sqrt(K) + penalty) v over the keys seen; query head h reads key/value head h // (H/G).

    Scores and softmax in at least float32. A query that sees nothing would average everything, so every query must see itself.
    heads: the global numbers of the query heads, which name the masks of `dropout` at `rate`. Returns [B, L, H, K].
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
    # Divided by their sum at the end, where there are K numbers for a query and not S. That softmax is blind to the shift is exact.
    weights_BHLS = jnp.exp(scores_BHLS - jax.lax.stop_gradient(jnp.max(scores_BHLS, axis=-1, keepdims=True)))
    sum_BHL = jnp.sum(weights_BHLS, axis=-1)
    if dropout is not None:
        weights_BHLS = dropout.attention(weights_BHLS, heads_H, rate)
    weights = weights_BHLS.astype(v_BSGK.dtype).reshape(scores.shape)
    out = jnp.einsum("bgrls,bgsk->bgrlk", weights, v_BGSK, preferred_element_type=dtype)
    out_BHLK = out.reshape(num_rows, num_heads, length, head_dim) / sum_BHL[..., None]
    return out_BHLK.transpose(0, 2, 1, 3).astype(q_BLHK.dtype)


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


class Attention(nn.Module):
    """Self-attention over this device's part of the query heads, and the key/value heads that they read."""

    model: schema.Model
    shard: TensorShard
    recompute_core: bool

    @nn.compact
    def __call__(self, x_BLD, places: Places, cache: LayerCache | None, dropout: Dropout | None):
        """x [B, L, D] -> ([B, L, D], the cache with x's keys and values in it, or None)."""
        model, width = self.model, x_BLD.shape[-1]
        num_heads, num_groups, head_dim = local_heads(model, self.shard)
        x_BLD = self.shard.enter(x_BLD, "attention, into its heads")
        q_BLHK = Linear((width,), (num_heads, head_dim), model.bias_qkv, model.init_std, name="query")(x_BLD)
        kv = Linear((width,), (num_groups, 2, head_dim), model.bias_qkv, model.init_std, name="key_value")(x_BLD)
        k_BLGK, v_BLGK = kv[..., 0, :], kv[..., 1, :]
        if model.qk_norm:
            q_BLHK, k_BLGK = HeadNorm(model, name="query_norm")(q_BLHK), HeadNorm(model, name="key_norm")(k_BLGK)
        if places.rotary is not None:
            q_BLHK, k_BLGK = positions.rotate(q_BLHK, places.rotary), positions.rotate(k_BLGK, places.rotary)

        key_positions, key_segments, updated = places.positions_BL, places.segment_ids_BL, None
        if cache is not None:
            k_BLGK, v_BLGK, updated = cache.extend(k_BLGK, v_BLGK)
            key_positions, key_segments = cache.cache.positions_BS, cache.cache.segment_ids_BS
        seen_BLS, distance_BLS = visible(model, places, key_positions, key_segments)
        penalty_BHLS = None
        if model.position == "alibi":
            slopes_H = jnp.asarray(positions.alibi_slopes(model.num_heads), jnp.promote_types(x_BLD.dtype, jnp.float32))
            slopes_H = self.shard.own_part(slopes_H, 0)
            penalty_BHLS = slopes_H[:, None, None] * distance_BLS[:, None]

        heads_H = self.shard.own_part(jnp.arange(model.num_heads), 0)
        core = attend_again if self.recompute_core else attend
        out_BLHK = core(q_BLHK, k_BLGK, v_BLGK, seen_BLS, penalty_BHLS, dropout, heads_H, model.dropout_attention)
        leave = lambda partial: self.shard.leave(partial, "attention, out of its heads")  # noqa: E731
        output = Linear((num_heads, head_dim), (width,), model.bias_attention_output, residual_std(model), leave, name="output")
        return output(out_BLHK), updated


def local_heads(model: schema.Model, shard: TensorShard) -> tuple[int, int, int]:
    """(H, G, K) of one device. Where there are fewer key/value heads than devices, each has the one that its query heads read."""
    num_heads, num_groups, head_dim = model.heads
    return num_heads // shard.size, max(num_groups // shard.size, 1), head_dim


class HeadNorm(nn.Module):
    """RMSNorm of every head with one learned scale [K] (Henry et al. 2020; as in Qwen3)."""

    model: schema.Model

    @nn.compact
    def __call__(self, x_BLHK):
        scale = self.param("scale", nn.initializers.ones, x_BLHK.shape[-1:], x_BLHK.dtype)
        return normalise(x_BLHK, scale, None, kind="rmsnorm", eps=self.model.norm_eps)
