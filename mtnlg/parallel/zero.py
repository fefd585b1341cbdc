"""ZeRO (Rajbhandari et al. 2020): weights gathered from their shards along `data`, gradients summed and scattered to them.

All of this runs inside `shard_map`, on this device's arrays. `dims` (`specs.dims_along`) says by path which dim of a parameter lies in
shards along `data`; None: it is whole on every device.

| zero | between steps | in a step |
|---|---|---|
| 0 | whole | gradients are summed once a step |
| 1 | in shards | weights are gathered once a step; gradients are accumulated whole, then summed and scattered once |
| 2 | in shards | as 1, but gradients are scattered after each microbatch, and only shards are accumulated |
| 3 | in shards | weights are gathered for one block at a time, in the forward and again in the backward; gradients leave it scattered |
"""

from mtnlg.core import collectives
from mtnlg.core.tree import map_with_path

GATHERED = {"data": "weights, gathered for the step", "pipe": "embedding and head, gathered for the step"}


def gather(shards: dict, dims: dict, axis: str = "data") -> dict:
    """Whole weights along `axis`, in the dtype of the shards."""

    def whole(path, shard):
        if dims[path] is None:
            return shard
        return collectives.all_gather(shard, axis, dims[path], GATHERED[axis])

    return map_with_path(whole, shards)


def gather_now(shards: dict, dims: dict, dtype_of, sum_dtype, *, prefix: str = "", stacked: bool = False) -> dict:
    """Whole weights in the dtype that `dtype_of(path, shard)` says; differentiating scatters their gradients, summed in `sum_dtype`.

    With `stacked`, `dims` counts the dim of layers, which the shards of one block do not have. `prefix`: of their paths.
    """

    def whole(path, shard):
        dim, dtype = dims[prefix + path], dtype_of(prefix + path, shard)
        if dim is None:
            return shard.astype(dtype)
        return collectives.gather_weight(shard, "data", dim - stacked, dtype, sum_dtype)

    return map_with_path(whole, shards)


def scatter(grads: dict, dims: dict, sum_dtype, *, prefix: str = "", stacked: bool = False) -> dict:
    """Gradients of whole weights as sums over `data`, each device its shards. What is not stored in shards passes as it is.

    `prefix` and `stacked` as in `gather_now`.
    """

    def own(path, grad):
        dim = dims[prefix + path]
        if dim is None:
            return grad
        return collectives.reduce_scatter(grad, "data", dim - stacked, "gradients, over samples, each device its shards", sum_dtype)

    return map_with_path(own, grads)


def sum_rest(grads: dict, dims: dict, is_partial, sum_dtype) -> dict:
    """What is still to be summed once a step.

    Over `data`, what is not scattered: every device along it read other samples. Over `replica` and `context` everything, since there
    devices read other samples or places, on shards where there are shards. Over `tensor`, what `is_partial(path)`.
    """

    def summed(path, grad):
        axes = ("replica", "data", "context") if dims[path] is None else ("replica", "context")
        total = collectives.all_reduce(grad, axes, "gradients, over samples", sum_dtype)
        return collectives.all_reduce(total, "tensor", "gradients, over heads or places") if is_partial(path) else total

    return map_with_path(summed, grads)


def sum_stages(grads: dict, pipe_dims: dict) -> dict:
    """Gradients of what several stages compute with, embedding, final norm and head, as sums over `pipe`; each stage its shards of what
    lies in shards there (`pipe_dims`). Blocks are of one stage only."""

    def summed(path, grad):
        if path.startswith("blocks/"):
            return grad
        if pipe_dims[path] is None:
            return collectives.all_reduce(grad, "pipe", "gradients, over stages")
        return collectives.reduce_scatter(grad, "pipe", pipe_dims[path], "gradients, over stages, each device its shards")

    return map_with_path(summed, grads)
