"""ZeRO (Rajbhandari et al. 2020): weights gathered from their shards along `data`, gradients summed and scattered to them.

All of this runs inside `shard_map`, on this device's arrays. `dims` (`specs.data_dims`) says by path which dim of a parameter lies in
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


def gather(shards: dict, dims: dict) -> dict:
    """Whole weights, in the dtype of the shards."""

    def whole(path, shard):
        if dims[path] is None:
            return shard
        return collectives.all_gather(shard, "data", dims[path], "weights, gathered for the step")

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


def scatter(grads: dict, dims: dict, sum_dtype) -> dict:
    """Gradients of whole weights as sums over `data`, each device its shards. What is not stored in shards passes as it is."""

    def own(path, grad):
        if dims[path] is None:
            return grad
        why = "gradients, over samples, each device its shards"
        return collectives.reduce_scatter(grad, "data", dims[path], why, sum_dtype)

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
