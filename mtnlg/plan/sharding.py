"""What lies where: every parameter's specs and bytes on one device, and the faults of the sharding tables. Nothing is allocated.

No mesh and no devices are needed, only the degrees of `mesh.*`; a model of any size takes a second.
"""

import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.core.tree import by_path, map_with_path
from mtnlg.model import count
from mtnlg.model.transformer import is_block_kernel
from mtnlg.parallel import arrangement, specs
from mtnlg.parallel.mesh import AXES

TABLES_FILE = "mtnlg/parallel/specs.py"
ADAM_MOMENTS = 2
# Matrices that devices along an axis do copy on purpose: (path, axis, whether this config is such a case, reason).
COPIED = (
    (
        "embedding/positions",
        "pipe",
        lambda config: True,
        "only the first stage reads it, and the table is small",
    ),
    (
        "embedding/positions",
        "tensor",
        lambda config: True,
        "each device looks up the rows of its places, and the table is small",
    ),
    (
        "blocks/attention/key_value/kernel",
        "tensor",
        lambda config: config.model.heads[1] < config.mesh.tensor,
        "there are fewer key/value heads than tensor shards",
    ),
)


class Row(NamedTuple):
    """One parameter. The bytes are those of one device."""

    path: str
    shape: tuple[int, ...]  # as it lies on the mesh: filled up for stages (parallel/arrangement.py)
    storage: P
    compute: P
    param_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    copy_bytes: int  # gathered or cast for a step; with ZeRO 3 one block's at a time
    microbatch_bytes: int  # of a microbatch's gradients, before they are added up; with stages one block's at a time


def rows(config: schema.Config) -> list[Row]:
    """A row for every parameter. Raises ConfigError with everything that is wrong with the tables at once."""
    found = problems(config)
    if found:
        what = "the sharding tables do not fit this config:\n" + "\n".join(f"  - {line}" for line in found) + "\n "
        raise ConfigError(what, TABLES_FILE, "other rows; a copy that is meant belongs into COPIED of mtnlg/plan/sharding.py")
    return [_row(config, path, shape) for path, shape in shapes(config).items()]


def shapes(config: schema.Config) -> dict[str, tuple[int, ...]]:
    """{path: shape on the mesh}."""
    params = count.abstract_params(config.model)
    arranged = lambda tree: map_with_path(lambda path, leaf: arrangement.arrange(config, path, leaf), tree)  # noqa: E731
    return {path: leaf.shape for path, leaf in by_path(jax.eval_shape(arranged, params)).items()}


def _row(config: schema.Config, path: str, shape: tuple[int, ...]) -> Row:
    storage, compute = (specs.spec_of(table(config), path) for table in (specs.storage_table, specs.compute_table))
    item_bytes = jnp.dtype(config.train.param_dtype).itemsize
    stored, whole = (item_bytes * math.prod(local_shape(config, shape, spec)) for spec in (storage, compute))
    # ZeRO 1 scatters its gradients once a step only; so does every stage what is stored in parts on all of them.
    accumulated = whole if config.mesh.zero == 1 else stored * (config.mesh.pipe if path in arrangement.VOCABULARY_DIM else 1)
    narrow = jnp.dtype(config.train.compute_dtype).itemsize if is_block_kernel(path) else item_bytes
    in_compute_dtype = whole // item_bytes * narrow
    copied = in_compute_dtype if (storage, item_bytes) != (compute, narrow) else 0
    row = Row(path, shape, storage, compute, stored, accumulated, ADAM_MOMENTS * stored, copied, in_compute_dtype)
    layers = local_shape(config, shape, compute)[0] if path.startswith("blocks/") else 1
    if config.mesh.pipe > 1:
        return row._replace(microbatch_bytes=whole // layers)
    return row._replace(copy_bytes=copied // layers, microbatch_bytes=stored) if config.mesh.zero == 3 else row


def local_shape(config: schema.Config, shape: tuple[int, ...], spec: P) -> tuple[int, ...]:
    """What one device holds of a parameter."""
    parts = [math.prod(getattr(config.mesh, axis) for axis in axes) for axes in axes_by_dim(spec, len(shape))]
    return tuple(size // part for size, part in zip(shape, parts, strict=True))


def axes_by_dim(spec: P, num_dims: int) -> list[tuple[str, ...]]:
    """The axes of each dim: () for one that is whole."""
    entries = [*spec, *[None] * (num_dims - len(spec))]
    return [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in entries]


def problems(config: schema.Config) -> list[str]:
    """One line for each fault of the tables under this config, with the row to change."""
    tables = {"COMPUTE": specs.compute_table(config), "STORAGE": specs.storage_table(config)}
    found = []
    for path, shape in shapes(config).items():
        computed = {}
        for name, table in tables.items():
            matching = [(pattern, spec) for pattern, spec in table if re.fullmatch(pattern, path)]
            if len(matching) != 1:
                places = " and ".join(where(name, pattern) for pattern, _ in matching) or where(name)
                found.append(f"{places}: {path} matches {len(matching)} rows of {name}, not one")
                continue
            ((pattern, spec),) = matching
            by_dim, row = axes_by_dim(spec, len(shape)), where(name, pattern)
            faults = [*_faults_of_spec(config, shape, spec), *(_copies(config, path, by_dim) if name == "STORAGE" else ())]
            found += [f"{row}: {show(spec)} of {path} {list(shape)} {fault}" for fault in faults]
            computed[row] = by_dim if name == "COMPUTE" else _gathered(path, by_dim)
        if len(computed) == 2 and len({str(axes) for axes in computed.values()}) == 2:
            axes = "data and pipe" if path in arrangement.VOCABULARY_DIM else "data"
            found.append(f"{' and '.join(computed)}: {path} is gathered along {axes} only, so these may differ in {axes} only")
    return list(dict.fromkeys(found))  # a row of VECTORS, which both tables take in, is at fault once


def _gathered(path: str, axes_of_dims: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The axes of each dim after a step's gathering: along data, and of the vocabulary along pipe."""

    def left(dim: int, axes: tuple[str, ...]) -> tuple[str, ...]:
        gathered = ("data", "pipe") if dim == arrangement.VOCABULARY_DIM.get(path) else ("data",)
        return tuple(axis for axis in axes if axis not in gathered)

    return [left(dim, axes) for dim, axes in enumerate(axes_of_dims)]


def _faults_of_spec(config: schema.Config, shape: tuple[int, ...], spec: P) -> Iterator[str]:
    if len(spec) > len(shape):
        yield f"has {len(spec)} entries for {len(shape)} dims"
        return
    by_dim = axes_by_dim(spec, len(shape))
    used = [axis for axes in by_dim for axis in axes]
    for axis in dict.fromkeys(used):
        if axis not in AXES:
            yield f"names {axis}, which is no axis of the mesh"
        if used.count(axis) > 1:
            yield f"uses {axis} {used.count(axis)} times"
    for dim, axes in enumerate(by_dim):
        parts = math.prod(getattr(config.mesh, axis, 1) for axis in axes)
        if shape[dim] % parts:
            degrees = " x ".join(f"mesh.{axis}={getattr(config.mesh, axis, 1)}" for axis in axes)
            yield f"shards dim {dim} of {shape[dim]}, which does not divide by {degrees}"


def _copies(config: schema.Config, path: str, axes_of_dims: list[tuple[str, ...]]) -> Iterator[str]:
    """Axes along which every device would hold the same part of a matrix, or every stage the same blocks, though nobody meant it."""
    used, mesh = {axis for axes in axes_of_dims for axis in axes}, config.mesh
    is_matrix = not path.endswith(("/bias", "/scale"))
    expected = {
        "pipe": mesh.pipe > 1 and (is_matrix or path.startswith("blocks/")),
        "tensor": mesh.tensor > 1 and is_matrix,
        "data": mesh.data > 1 and mesh.zero > 0 and is_matrix,
    }
    for axis, shards in expected.items():
        meant = any(name == path and of == axis and applies(config) for name, of, applies, _ in COPIED)
        if shards and axis not in used and not meant:
            yield f"leaves out {axis}: all {getattr(mesh, axis)} devices along it would hold the same"


def where(table: str, pattern: str | None = None) -> str:
    """`mtnlg/parallel/specs.py:34 ("blocks/mlp/down/kernel")`: the row of a table (None: its beginning), as its source has it.

    A row of VECTORS stands before both tables.
    """
    lines = pathlib.Path(specs.__file__).read_text().splitlines()
    begin = lines.index(f"{table} = (")
    if pattern is None:
        return f"{TABLES_FILE}:{begin + 1} ({table})"
    row = next((n for n in (*range(begin, len(lines)), *range(begin)) if f'r"{pattern}"' in lines[n]), None)
    return f'{TABLES_FILE}{"" if row is None else f":{row + 1}"} ("{pattern}")'


def show(spec: P) -> str:
    """`[-, data, tensor]`; a dim over several axes as `replica+data`."""
    return "[" + ", ".join("+".join(axes) or "-" for axes in axes_by_dim(spec, len(spec))) + "]"


def without_short(mesh: schema.Mesh, spec: P) -> P:
    """The spec without axes of degree 1; P() where nothing is parted."""
    kept = [tuple(axis for axis in axes if getattr(mesh, axis) > 1) for axes in axes_by_dim(spec, len(spec))]
    return P(*kept) if any(kept) else P()
