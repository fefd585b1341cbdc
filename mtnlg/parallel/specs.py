"""Which axis of the mesh shards which dim of which parameter: two tables, storage and compute.

A row is (regular expression over the whole path, PartitionSpec). Every leaf matches exactly one row of each table; anything else is
a fault of the table and raises. `compute` is what a block sees inside `shard_map`; `storage` is where parameters, gradients and
optimizer state rest between steps. With ZeRO (Rajbhandari et al. 2020) every matrix is stored in shards along `data`, always along its
D; biases and norms, a few thousandths of the whole, stay on every device.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.tree import by_path, map_with_path

VECTORS = (
    (r"blocks/attention/query/bias", P(None, "tensor", None)),
    (r"blocks/attention/key_value/bias", P(None, "tensor", None, None)),
    (r"blocks/mlp/(up|gate)/bias", P(None, "tensor")),
    (r"blocks/(attention/output|mlp/down)/bias", P()),
    (r"blocks/(attention_norm|mlp_norm|attention/query_norm|attention/key_norm)/(scale|bias)", P()),
    (r"final_norm/(scale|bias)", P()),
)
COMPUTE = (
    (r"embedding/tokens", P("tensor", None)),
    (r"embedding/positions", P()),
    (r"blocks/attention/query/kernel", P(None, None, "tensor", None)),
    (r"blocks/attention/key_value/kernel", P(None, None, "tensor", None, None)),
    (r"blocks/attention/output/kernel", P(None, "tensor", None, None)),
    (r"blocks/mlp/(up|gate)/kernel", P(None, None, "tensor")),
    (r"blocks/mlp/down/kernel", P(None, "tensor", None)),
    (r"head/kernel", P(None, "tensor")),
    *VECTORS,
)
STORAGE = (
    (r"embedding/tokens", P("tensor", "data")),
    (r"embedding/positions", P(None, "data")),
    (r"blocks/attention/query/kernel", P(None, "data", "tensor", None)),
    (r"blocks/attention/key_value/kernel", P(None, "data", "tensor", None, None)),
    (r"blocks/attention/output/kernel", P(None, "tensor", None, "data")),
    (r"blocks/mlp/(up|gate)/kernel", P(None, "data", "tensor")),
    (r"blocks/mlp/down/kernel", P(None, "tensor", "data")),
    (r"head/kernel", P("data", "tensor")),
    *VECTORS,
)


def compute_table(config: schema.Config) -> tuple:
    """The rows for what a block sees."""
    return _replicated_groups(config, COMPUTE)


def storage_table(config: schema.Config) -> tuple:
    """The rows for what rests between steps: with ZeRO 0 as it is computed with, else in shards along `data` too."""
    return _replicated_groups(config, COMPUTE if config.mesh.zero == 0 else STORAGE)


def _replicated_groups(config: schema.Config, table: tuple) -> tuple:
    """Fewer key/value heads than tensor shards cannot be parted: every device stores all of them, and takes the one that it reads."""
    if config.model.heads[1] >= config.mesh.tensor:
        return table
    without = lambda spec: P(*(None if axis == "tensor" else axis for axis in spec))  # noqa: E731
    return tuple((pattern, without(spec) if "key_value" in pattern else spec) for pattern, spec in table)


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


def data_dims(config: schema.Config, params) -> dict[str, int | None]:
    """{path: the dim that is stored in shards along `data`, or None}."""
    table = storage_table(config)

    def dim(path):
        spec = spec_of(table, path)
        return spec.index("data") if "data" in spec else None

    return {path: dim(path) for path in by_path(params)}


def is_partial(config: schema.Config, path: str) -> bool:
    """Whether each device along `tensor` finds only a part of this parameter's gradient, though all of them hold the parameter.

    Norms of heads, and key/value heads that several devices copy, are read inside the parallel regions. With sequence parallelism
    everything else that is not sharded along `tensor` is read by each device for its own places only.
    """
    if "tensor" in spec_of(compute_table(config), path):
        return False
    inside = path.startswith(("blocks/attention/query_norm", "blocks/attention/key_norm", "blocks/attention/key_value"))
    return inside or config.mesh.sequence_parallel
