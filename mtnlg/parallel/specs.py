"""Which axis of the mesh shards which dim of which parameter: two tables, storage and compute.

A row is (regular expression over the whole path, PartitionSpec). Every leaf matches exactly one row of each table; anything else is
a fault of the table and raises. `compute` is what a block sees inside `shard_map`; `storage` is where parameters, gradients and
optimizer state rest between steps. The blocks lie on their pipeline stages; embedding and head, with which only the first and the last
stage compute, are stored in parts on all of them. With ZeRO (Rajbhandari et al. 2020) every matrix is stored in shards along `data`,
always along its D; biases and norms, a few thousandths of the whole, stay on every device.
"""

import math
import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.tree import by_path, map_with_path

VECTORS = (
    (r"blocks/attention/query/bias", P("pipe", "tensor", None)),
    (r"blocks/attention/key_value/bias", P("pipe", "tensor", None, None)),
    (r"blocks/mlp/(up|gate)/bias", P("pipe", "tensor")),
    (r"blocks/(attention/output|mlp/down)/bias", P("pipe")),
    (r"blocks/(attention_norm|mlp_norm|attention/query_norm|attention/key_norm)/(scale|bias)", P("pipe")),
    (r"final_norm/(scale|bias)", P()),
)
COMPUTE = (
    (r"embedding/tokens", P("tensor", None)),
    (r"embedding/positions", P()),
    (r"blocks/attention/query/kernel", P("pipe", None, "tensor", None)),
    (r"blocks/attention/key_value/kernel", P("pipe", None, "tensor", None, None)),
    (r"blocks/attention/output/kernel", P("pipe", "tensor", None, None)),
    (r"blocks/mlp/(up|gate)/kernel", P("pipe", None, "tensor")),
    (r"blocks/mlp/down/kernel", P("pipe", "tensor", None)),
    (r"head/kernel", P(None, "tensor")),
    *VECTORS,
)
STORAGE = (
    (r"embedding/tokens", P(("tensor", "pipe"), "data")),
    (r"embedding/positions", P(None, "data")),
    (r"blocks/attention/query/kernel", P("pipe", "data", "tensor", None)),
    (r"blocks/attention/key_value/kernel", P("pipe", "data", "tensor", None, None)),
    (r"blocks/attention/output/kernel", P("pipe", "tensor", None, "data")),
    (r"blocks/mlp/(up|gate)/kernel", P("pipe", "data", "tensor")),
    (r"blocks/mlp/down/kernel", P("pipe", "tensor", "data")),
    (r"head/kernel", P("data", ("tensor", "pipe"))),
    *VECTORS,
)


def compute_table(config: schema.Config) -> tuple:
    """The rows for what a block sees."""
    return _replicated_groups(config, COMPUTE)


def storage_table(config: schema.Config) -> tuple:
    """The rows for what rests between steps: in shards along `data` too, but with ZeRO 0."""
    whole_over_data = tuple((pattern, _without(spec, "data")) for pattern, spec in STORAGE)
    return _replicated_groups(config, whole_over_data if config.mesh.zero == 0 else STORAGE)


def _replicated_groups(config: schema.Config, table: tuple) -> tuple:
    """Fewer key/value heads than tensor shards cannot be parted: every device stores all of them, and takes the one that it reads."""
    if config.model.heads[1] >= config.mesh.tensor:
        return table
    return tuple((pattern, _without(spec, "tensor") if "key_value" in pattern else spec) for pattern, spec in table)


def _without(spec: P, axis: str) -> P:
    return P(*(None if entry == axis else entry for entry in spec))


def fitting(mesh: Mesh, spec: P, shape: tuple[int, ...]) -> P:
    """`spec` for an array that it need not divide: an axis that does not fit its dim goes to the first that it does fit, or away."""
    parts = [list(_axes(entry)) for entry in spec] + [[] for _ in shape[len(spec) :]]

    def fits(dim: int, axes: list[str]) -> bool:
        return shape[dim] % math.prod(mesh.shape[axis] for axis in axes) == 0

    if all(fits(dim, axes) for dim, axes in enumerate(parts)):
        return spec
    homeless = []
    for dim, axes in enumerate(parts):
        while not fits(dim, axes):
            homeless.append(axes.pop())
    for axis in homeless:
        home = next((dim for dim, axes in enumerate(parts) if fits(dim, [*axes, axis])), None)
        if home is not None:
            parts[home].append(axis)
    return P(*(tuple(axes) or None for axes in parts))


def spec_of(table: tuple, path: str) -> P:
    """The one row of `table` that matches `path`. Raises ValueError when none or several do."""
    found = [spec for pattern, spec in table if re.fullmatch(pattern, path)]
    if len(found) != 1:
        raise ValueError(f"parameter {path} matches {len(found)} rows of the sharding table, not one: mend mtnlg/parallel/specs.py")
    return found[0]


def specs(table: tuple, params) -> dict:
    """A tree of PartitionSpecs, shaped like the parameters."""
    return map_with_path(lambda path, _: spec_of(table, path), params)


def shardings(mesh: Mesh, table: tuple, params) -> dict:
    """A tree of NamedShardings, shaped like the parameters."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(table, params), is_leaf=lambda x: isinstance(x, P))


def dims_along(axis: str, config: schema.Config, params) -> dict[str, int | None]:
    """{path: the dim that is stored in shards along `axis` and computed with whole, or None}."""
    storage, compute = storage_table(config), compute_table(config)

    def dim(path):
        stored, computed = ([n for n, entry in enumerate(spec_of(t, path)) if axis in _axes(entry)] for t in (storage, compute))
        return next((n for n in stored if n not in computed), None)

    return {path: dim(path) for path in by_path(params)}


def _axes(entry) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def is_partial(config: schema.Config, path: str) -> bool:
    """Whether each device along `tensor` finds only a part of this parameter's gradient, though all of them hold the parameter.

    Norms of heads, and key/value heads that several devices copy, are read inside the parallel regions. With sequence parallelism
    everything else that is not sharded along `tensor` is read by each device for its own places only.
    """
    if "tensor" in spec_of(compute_table(config), path):
        return False
    inside = path.startswith(("blocks/attention/query_norm", "blocks/attention/key_norm", "blocks/attention/key_value"))
    return inside or config.mesh.sequence_parallel
