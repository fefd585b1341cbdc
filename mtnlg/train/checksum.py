"""Checksums of arrays, by which two copies, or the same thing computed twice, are compared bit for bit."""

import jax
import jax.numpy as jnp


def checksum(leaf):
    """uint32, of all bits of an array. One changed value always changes it; other changes do but for one in 2**32.

    Every word is mixed with its place, one to one (the last steps of MurmurHash3), and these are summed: no order of summing matters,
    and signs or neighbours that change places do not cancel out.
    """
    words = _words(leaf)
    mixed = words ^ (_places(words.shape) * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def checksums(tree):
    """uint32 [leaves], in the tree's own order."""
    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])


def _words(leaf):
    """The bits of every value, in 32 each, or of 64 in two."""
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, f"uint{min(8 * leaf.dtype.itemsize, 32)}").astype(jnp.uint32)


def _places(shape: tuple[int, ...]):
    """The number of every place, counted as rows follow rows; made of one count for each dim, so that shards need no other shard's."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for dim in reversed(range(len(shape))):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride % 2**32)
        stride *= shape[dim]
    return places
