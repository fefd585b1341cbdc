"""Attention: projections of this device's heads round the core."""

import flax.linen as nn
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.prng import Dropout
from mtnlg.model import blockwise, positions
from mtnlg.model.attention_cached import attend_cached
from mtnlg.model.attention_core import Places, attend, attend_again, penalty_of, visible
from mtnlg.model.cache import LayerCache
from mtnlg.model.layers import Linear, normalise, residual_std


class Attention(nn.Module):
    """Self-attention over this device's part of the query heads, and the key/value heads that they read; of its part of the places."""

    model: schema.Model
    shard: TensorShard
    context: ContextShard
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

        slopes_H = None
        if model.position == "alibi":
            slopes_H = jnp.asarray(positions.alibi_slopes(model.num_heads), jnp.promote_types(x_BLD.dtype, jnp.float32))
            slopes_H = self.shard.own_part(slopes_H, 0)
        heads_H = self.shard.own_part(jnp.arange(model.num_heads), 0)

        updated = None
        if cache is not None:
            extended = cache.extend(k_BLGK, v_BLGK)
            updated = extended.cache
            out_BLHK = attend_cached(model, q_BLHK, extended, slopes_H)
        elif self.context.size > 1:
            known = blockwise.Known(places, slopes_H, heads_H, dropout)
            out_BLHK = blockwise.attend_in_blocks(model, self.context, q_BLHK, k_BLGK, v_BLGK, known)
        else:
            seen_BLS, distance_BLS = visible(model, places)
            core = attend_again if self.recompute_core else attend
            penalty_BHLS = penalty_of(distance_BLS, slopes_H)
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
