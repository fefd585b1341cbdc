"""One flipped bit in one device's copy of an array, as a faulty memory would leave it."""

import random

import jax
import numpy as np

from mtnlg.core.tree import by_path


def flipped(array: jax.Array, device, bit: int) -> jax.Array:
    """The array, with this bit (counted over all bits of the shard) flipped in what one device holds; the other devices' stays theirs."""

    def data(shard):
        if shard.device != device:
            return shard.data
        host = np.array(shard.data)
        host.reshape(-1).view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)
        return jax.device_put(host, device)

    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, [data(shard) for shard in array.addressable_shards])


def draw(tree, wanted, seed: int):
    """(tree, path, device): a bit of an array whose path `wanted` picks, on some device, flipped."""
    choice = random.Random(seed)
    leaves = by_path(tree)
    path = choice.choice([name for name in leaves if wanted(name)])
    shard = choice.choice(leaves[path].addressable_shards)
    bad = flipped(leaves[path], shard.device, choice.randrange(8 * shard.data.nbytes))
    return jax.tree.map(lambda leaf: bad if leaf is leaves[path] else leaf, tree), path, shard.device
