"""Keys and values of tokens already read, one text a row, each token in the slot of its position; decoding updates them in place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.model.int8 import Int8, narrow, wide

BLOCK = 128  # slots that attention looks at together
IDLE = -1  # the position of a token that is not there: it is written nowhere


class Cache(NamedTuple):
    """S slots for each of B rows: arrays [N, B, G, S, K], or `Int8` of them with one scale for every head of every token."""

    keys: jax.Array | Int8
    values: jax.Array | Int8

    @property
    def num_slots(self) -> int:
        return jax.tree.leaves(self.keys)[0].shape[3]

    @property
    def block(self) -> int:
        """Slots of a block, which divides `num_slots`."""
        return min(BLOCK, self.num_slots)


def empty(model: schema.Model, num_rows: int, num_slots: int, dtype, num_shards: int = 1, int8: bool = False) -> Cache:
    """A cache with no token in it. With more tensor shards than key/value heads, each shard has a copy of the head that it reads."""
    _, groups, head_dim = model.heads
    shape = (model.num_layers, num_rows, max(groups, num_shards), num_slots, head_dim)

    def one():
        return Int8(jnp.zeros(shape, jnp.int8), jnp.ones((*shape[:-1], 1), dtype)) if int8 else jnp.zeros(shape, dtype)

    return Cache(one(), one())


class LayerCache(NamedTuple):
    """A layer's view of the cache for tokens at `positions_BL`. row: the one row that they are of; None: a token row for each row."""

    cache: Cache
    layer: jax.Array | int
    row: jax.Array | None
    positions_BL: jax.Array

    def extend(self, k_BLGK, v_BLGK) -> "LayerCache":
        """With the new keys and values in their slots."""
        rows = jnp.arange(k_BLGK.shape[0]) if self.row is None else self.row[None]
        slots_BL = jnp.where(self.positions_BL == IDLE, self.cache.num_slots, self.positions_BL)  # beyond the end: dropped
        at = (self.layer, rows[:, None], slice(None), slots_BL)

        def written(store, new_BLGK):
            if isinstance(store, Int8):
                return jax.tree.map(lambda a, b: a.at[at].set(b, mode="drop"), store, narrow(new_BLGK, (3,)))
            return store.at[at].set(new_BLGK.astype(store.dtype), mode="drop")

        return self._replace(cache=Cache(written(self.cache.keys, k_BLGK), written(self.cache.values, v_BLGK)))

    def read(self, number, dtype):
        """(keys [B, S, G, K], values) of block `number`, in `dtype`."""

        def part(a):
            start = _index(self.layer, 0 if self.row is None else self.row, 0, number * self.cache.block, 0)
            size = (1, a.shape[1] if self.row is None else 1, a.shape[2], self.cache.block, a.shape[4])
            return jax.lax.dynamic_slice(a, start, size)[0]

        def one(store):
            return wide(jax.tree.map(part, store), dtype).astype(dtype).transpose(0, 2, 1, 3)

        return one(self.cache.keys), one(self.cache.values)


def copy_prefix(cache: Cache, source, target, num_blocks) -> Cache:
    """With the first blocks of row `source` in row `target` too."""

    def copied(a):
        def one(number, a):
            start = number * cache.block
            block = jax.lax.dynamic_slice(a, _index(0, source, 0, start, 0), (a.shape[0], 1, a.shape[2], cache.block, a.shape[4]))
            return jax.lax.dynamic_update_slice(a, block, _index(0, target, 0, start, 0))

        return jax.lax.fori_loop(0, num_blocks, one, a)

    return jax.tree.map(copied, cache)


def _index(*numbers):
    """In one dtype, as slices want it."""
    return tuple(jnp.asarray(number, jnp.int32) for number in numbers)
