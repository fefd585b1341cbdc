"""Keys and values of tokens already read, in fixed slots; decoding updates them in place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import schema

EMPTY = -1  # segment id of a slot that holds nothing: no query has it, so nothing sees the slot


class Cache(NamedTuple):
    """S slots for each of B rows. `positions` and `segment_ids` say what lies in a slot, for all layers alike."""

    keys_NBSGK: jax.Array
    values_NBSGK: jax.Array
    positions_BS: jax.Array
    segment_ids_BS: jax.Array


def empty(model: schema.Model, num_rows: int, num_slots: int, dtype, num_shards: int = 1) -> Cache:
    """A cache with no token in it. With more tensor shards than key/value heads, each shard has a copy of the head that it reads."""
    _, groups, head_dim = model.heads
    groups = max(groups, num_shards)
    shape = (model.num_layers, num_rows, num_slots, groups, head_dim)
    places = jnp.zeros((num_rows, num_slots), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), places, places + EMPTY)


class LayerCache(NamedTuple):
    """A layer's view of the cache, and the slots [B, L] the new tokens go to. Slots beyond the end are dropped."""

    cache: Cache
    layer: jax.Array
    slots_BL: jax.Array

    def extend(self, k_BLGK, v_BLGK):
        """Writes the new keys and values; returns (keys [B, S, G, K], values, cache)."""
        rows = jnp.arange(k_BLGK.shape[0])[:, None]
        at = (self.layer, rows, self.slots_BL)
        keys = self.cache.keys_NBSGK.at[at].set(k_BLGK.astype(self.cache.keys_NBSGK.dtype), mode="drop")
        values = self.cache.values_NBSGK.at[at].set(v_BLGK.astype(self.cache.values_NBSGK.dtype), mode="drop")
        cache = self.cache._replace(keys_NBSGK=keys, values_NBSGK=values)
        one = [jax.lax.dynamic_index_in_dim(a, self.layer, keepdims=False).astype(k_BLGK.dtype) for a in (keys, values)]
        return *one, cache


def occupy(cache: Cache, slots_BL, positions_BL, segment_ids_BL) -> Cache:
    """Marks the slots that new tokens will fill, once for all layers."""
    rows = jnp.arange(slots_BL.shape[0])[:, None]
    return cache._replace(
        positions_BS=cache.positions_BS.at[rows, slots_BL].set(positions_BL, mode="drop"),
        segment_ids_BS=cache.segment_ids_BS.at[rows, slots_BL].set(segment_ids_BL, mode="drop"),
    )
