"""Which axis of the mesh shards which dim of which parameter: two tables, storage and compute.

A row is (regular expression over the whole path, PartitionSpec). Every leaf matches exactly one row of each table; anything else is
a fault of the table and raises. `compute` is what a block sees inside `shard_map`; `storage` is where parameters, gradients and
optimizer state rest between steps.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core.tree import map_with_path

COMPUTE = (
    (r"embedding/tokens", P("tensor", None)),
    (r"embedding/positions", P()),
    (r"blocks/attention/query/kernel", P(None, None, "tensor", None)),
    (r"blocks/attention/query/bias", P(None, "tensor", None)),
    (r"blocks/attention/key_value/kernel", P(None, None, "tensor", None, None)),
    (r"blocks/attention/key_value/bias", P(None, "tensor", None, None)),
    (r"blocks/attention/output/kernel", P(None, "tensor", None, None)),
    (r"blocks/mlp/(up|gate)/kernel", P(None, None, "tensor")),
    (r"blocks/mlp/(up|gate)/bias", P(None, "tensor")),
    (r"blocks/mlp/down/kernel", P(None, "tensor", None)),
    (r"blocks/(attention/output|mlp/down)/bias", P()),
    (r"blocks/(attention_norm|mlp_norm|attention/query_norm|attention/key_norm)/(scale|bias)", P()),
    (r"final_norm/(scale|bias)", P()),
    (r"head/kernel", P(None, "tensor")),
)
STORAGE = COMPUTE


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
