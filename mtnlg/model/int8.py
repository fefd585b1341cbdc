"""Numbers in eight bits: whole numbers from -127 to 127, and one scale for all that are multiplied by the same factor."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Int8(NamedTuple):
    """values int8; scales of the same rank, size 1 in the dims that share them: the numbers are values times scales."""

    values: jax.Array
    scales: jax.Array


def narrow(x, dims: tuple[int, ...]) -> Int8:
    """The nearest of 255 evenly spaced numbers, the largest over `dims` being 127 (Dettmers et al. 2022, arXiv 2208.07339, section 2).

    Scales in the dtype of x; quotients in at least float32: bfloat16 would round them to halves before they are rounded, and to 128.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=dims, keepdims=True)
    scales = jnp.where(largest > 0, largest / 127, jnp.ones((), x.dtype))
    return Int8(jnp.round(x.astype(dtype) / scales.astype(dtype)).astype(jnp.int8), scales)


def wide(leaf, dtype):
    """An array in `dtype`, of an `Int8` or an array."""
    return leaf.values.astype(dtype) * leaf.scales.astype(dtype) if isinstance(leaf, Int8) else leaf


def is_int8(leaf) -> bool:
    return isinstance(leaf, Int8)


def wide_kernels(blocks: dict, dtype) -> dict:
    """The parameters of one block as arrays; those in eight bits in `dtype`."""
    return jax.tree.map(lambda leaf: wide(leaf, dtype), blocks, is_leaf=is_int8)
