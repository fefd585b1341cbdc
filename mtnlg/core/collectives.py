"""Every collective of the house, by kind: what goes over which axes of the mesh, and why.

All of them run inside the one `shard_map`. `why` stands in the program's own metadata (`jax.named_scope`), so that the report of
`mtnlg plan` and the negative controls of the tests can name each one. An axis of degree 1 vanishes: nothing is emitted for it.

`check_vma` is off, so JAX's own derivative of a sum over devices would be another sum: wrong wherever the sum's result is used by
all of them alike. The pairs below say both directions themselves: "enter" and "leave" are Megatron's conjugate operators f and g
(Shoeybi et al. 2019, section 3; with sequences sharded, g and its conjugate of Korthikanti et al. 2022, section 4.2.2).
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

SEQUENCE_DIM = 1  # of activations [B, L, D]


def degree(axes) -> int:
    """Devices along one axis or several; only inside `shard_map`."""
    return jax.lax.axis_size(axes)


def _longer_than_1(axes) -> tuple[str, ...]:
    return tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if degree(axis) > 1)


def all_reduce(x, axes, why: str, dtype=None):
    """The sum over the devices along `axes`, added up in `dtype` (None: x's own); all of them get it."""
    axes = _longer_than_1(axes)
    if not axes:
        return x
    with jax.named_scope(why):
        return jax.lax.psum(x.astype(dtype or x.dtype), axes).astype(x.dtype)


def all_max(x, axis: str, why: str):
    """The largest value over the devices along `axis`, elementwise; not differentiated."""
    if degree(axis) == 1:
        return x
    with jax.named_scope(why):
        return jax.lax.pmax(x, axis)


def all_gather(x, axis: str, dim: int, why: str):
    """The shards along `axis` one behind the other in `dim`; every device gets the whole."""
    if degree(axis) == 1:
        return x
    with jax.named_scope(why):
        return jax.lax.all_gather(x, axis, axis=dim, tiled=True)


def reduce_scatter(x, axis: str, dim: int, why: str, dtype=None):
    """The sum over the devices along `axis`, added up in `dtype` (None: x's own); each keeps its own share of `dim`."""
    if degree(axis) == 1:
        return x
    with jax.named_scope(why):
        return jax.lax.psum_scatter(x.astype(dtype or x.dtype), axis, scatter_dimension=dim, tiled=True).astype(x.dtype)


def permute(x, axis: str, shift: int, why: str):
    """x of the device `shift` places before along `axis`, which is a ring."""
    size = degree(axis)
    if size == 1:
        return x
    with jax.named_scope(why):
        return jax.lax.ppermute(x, axis, [(source, (source + shift) % size) for source in range(size)])


# Pairs: forward and backward. The functions above are looked up when a program is traced, so that a test can take one away.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _enter_whole(x, axis, why):
    return x


_enter_whole.defvjp(lambda x, axis, why: (x, None), lambda axis, why, _, g: (all_reduce(g, axis, f"{why}, backward"),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _leave_whole(x, axis, why):
    return all_reduce(x, axis, why)


_leave_whole.defvjp(lambda x, axis, why: (_leave_whole(x, axis, why), None), lambda axis, why, _, g: (g,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _enter_sharded(x, axis, why):
    return all_gather(x, axis, SEQUENCE_DIM, why)


_enter_sharded.defvjp(
    lambda x, axis, why: (_enter_sharded(x, axis, why), None),
    lambda axis, why, _, g: (reduce_scatter(g, axis, SEQUENCE_DIM, f"{why}, backward"),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _leave_sharded(x, axis, why):
    return reduce_scatter(x, axis, SEQUENCE_DIM, why)


_leave_sharded.defvjp(
    lambda x, axis, why: (_leave_sharded(x, axis, why), None),
    lambda axis, why, _, g: (all_gather(g, axis, SEQUENCE_DIM, f"{why}, backward"),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather_weight(shard, axis: str, dim: int, dtype, sum_dtype):
    """A whole weight in `dtype` from its shards along `axis`; backward, its gradient is summed in `sum_dtype` and scattered again."""
    return all_gather(shard.astype(dtype), axis, dim, "weights, gathered for one block")


gather_weight.defvjp(
    lambda shard, axis, dim, dtype, sum_dtype: (gather_weight(shard, axis, dim, dtype, sum_dtype), jnp.zeros((), shard.dtype)),
    lambda axis, dim, dtype, sum_dtype, like, g: (
        reduce_scatter(g.astype(like.dtype), axis, dim, "gradients of one block, over samples", sum_dtype),
    ),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather_summed(x, axis: str, dim: int, why: str):
    """The shards along `axis` one behind the other in `dim`; backward, the sum of what the devices say, each its own share of it."""
    return all_gather(x, axis, dim, why)


gather_summed.defvjp(
    lambda x, axis, dim, why: (gather_summed(x, axis, dim, why), None),
    lambda axis, dim, why, _, g: (reduce_scatter(g, axis, dim, f"{why}, backward", jnp.promote_types(g.dtype, jnp.float32)),),
)


@dataclass(frozen=True)
class TensorShard:
    """This device's part of every layer: one of `size` along the axis `tensor`. The default is the whole layer, on no mesh at all.

    With `sequence_parallel`, what lies between the parallel regions (residual stream, norms, row biases, dropout) holds only this
    device's share of the places, L / size in order of rank.
    """

    size: int = 1
    sequence_parallel: bool = False
    axis: str = "tensor"

    @property
    def shards_sequence(self) -> bool:
        return self.sequence_parallel and self.size > 1

    def rank(self):
        """Which part this is, traced; 0 for the whole."""
        return jax.lax.axis_index(self.axis) if self.size > 1 else 0

    def enter(self, x_BLD, why: str):
        """Into a column-parallel layer: all places, on every device. Its gradient is the sum of what each device's columns say."""
        if self.size == 1:
            return x_BLD
        return (_enter_sharded if self.sequence_parallel else _enter_whole)(x_BLD, self.axis, why)

    def leave(self, partial_BLD, why: str):
        """Out of a row-parallel layer: the sum of what each device's rows gave, for all places or this device's share of them."""
        if self.size == 1:
            return partial_BLD
        return (_leave_sharded if self.sequence_parallel else _leave_whole)(partial_BLD, self.axis, why)

    def own_places(self, x, dim: int):
        """What of `dim`, which counts places, lies in this device's residual stream."""
        return self.own_part(x, dim) if self.shards_sequence else x

    def own_part(self, x, dim: int):
        """This device's equal part of `dim`, which counts heads or places."""
        if self.size == 1:
            return x
        length = x.shape[dim] // self.size
        return jax.lax.dynamic_slice_in_dim(x, self.rank() * length, length, dim)

    def sum(self, x, why: str):
        """All-reduce over the parts; not differentiated."""
        return all_reduce(x, self.axis, why) if self.size > 1 else x

    def max(self, x, why: str):
        return all_max(x, self.axis, why) if self.size > 1 else x


def zigzag(length: int, size: int) -> np.ndarray:
    """The order [length] in which a sequence's places lie on `size` devices, equal parts in order of rank.

    Of 2·size chunks rank i has chunks i and 2·size-1-i, so that all have the same share of what a causal mask leaves.
    """
    if size == 1:
        return np.arange(length)
    ranks = np.arange(size)
    chunks = np.arange(length).reshape(2 * size, -1)
    return chunks[np.stack([ranks, 2 * size - 1 - ranks], axis=1).ravel()].ravel()


@dataclass(frozen=True)
class ContextShard:
    """This device's part of every sequence: one of `size` along the axis `context`, in the order of `zigzag`. By default all of it.

    Keys and values of the other parts come by a ring, a part at a time, or (no `ring`) gathered.
    """

    size: int = 1
    ring: bool = True
    axis: str = "context"

    def rank(self):
        """Which part this is, traced; 0 for the whole."""
        return jax.lax.axis_index(self.axis) if self.size > 1 else 0

    def own_places(self, length: int):
        """[length / size] the places of the sequence that lie here."""
        return self.key_places(length).reshape(self.size, -1)[self.rank()]

    def key_places(self, length: int):
        """[length] all places of the sequence, part behind part."""
        return jnp.asarray(zigzag(length, self.size))

    def all_places(self, x, dim: int, why: str):
        """What all devices have of `dim`, which counts places, part behind part; not differentiated."""
        return all_gather(x, self.axis, dim, why) if self.size > 1 else x

    def in_order(self, x, dim: int):
        """What `all_places` gave, in the sequence's own order."""
        return jnp.take(x, np.argsort(zigzag(x.shape[dim], self.size)), axis=dim) if self.size > 1 else x

    def all_keys(self, kv, dim: int, why: str):
        """As `all_places`, differentiable: what the devices say of a part is summed on the device that has it."""
        return gather_summed(kv, self.axis, dim, why)

    def next_part(self, x, why: str):
        """A step of the ring: x, or None, of the device before this one."""
        return None if x is None else permute(x, self.axis, 1, why)


WHOLE = TensorShard()
WHOLE_SEQUENCE = ContextShard()
