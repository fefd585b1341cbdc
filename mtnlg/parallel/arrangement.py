"""How parameters lie for pipeline stages.

On the mesh the blocks are stacked stage by stage, chunk by chunk, each chunk filled up with zeros to the longest; the vocabulary is filled
up so that stages and tensor shards divide it. That is the *arranged* form; checkpoints have the model's own, *canonical* form. Where both
are the same, and without a pipeline they are, nothing is moved. Zeros stay zeros: their gradients are, and so are Adam's moments.

Leaf by leaf, because the compiler gathers a leaf's layers from all stages to put them in another order: one leaf at a time lies whole
along `pipe`, in its tensor and ZeRO shards.

A path may be that of a parameter or end in one, as those of Adam's moments do.
"""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.tree import map_with_path
from mtnlg.parallel import specs, stages

VOCABULARY_DIM = {"embedding/tokens": 0, "head/kernel": 1}
_PARAMETER = re.compile(r"(embedding|blocks|final_norm|head)/.*")


def shardings(config: schema.Config, mesh: Mesh, tree):
    """Where an arranged tree rests; what is no parameter, everywhere."""
    return map_with_path(lambda path, _: NamedSharding(mesh, _spec(config, path)), tree)


def canonical_shardings(config: schema.Config, mesh: Mesh, tree):
    """Where a canonical tree lies, close to its arranged form: an axis that does not divide its dim parts another one."""
    return map_with_path(lambda path, leaf: NamedSharding(mesh, specs.fitting(mesh, _spec(config, path), leaf.shape)), tree)


def canonical(config: schema.Config, mesh: Mesh, tree):
    """An arranged tree in its canonical form; its own arrays stay as they are."""
    return map_with_path(functools.partial(_converted, config, mesh, restore_order), tree)


def arranged(config: schema.Config, mesh: Mesh, tree):
    """A canonical tree in its arranged form."""
    return map_with_path(functools.partial(_converted, config, mesh, arrange), tree)


def _converted(config: schema.Config, mesh: Mesh, convert: Callable, path: str, leaf):
    if not _differs(config, path):
        return leaf
    return converter(config, mesh, convert, _PARAMETER.search(path)[0], leaf.shape, leaf.dtype)(leaf)  # of both moments too


@functools.cache
def converter(config: schema.Config, mesh: Mesh, convert: Callable, path: str, shape: tuple[int, ...], dtype):
    """The compiled `arrange` or `restore_order` of one parameter, or of what is shaped like it."""
    convert, spec = functools.partial(convert, config, path), _spec(config, path)
    made = jax.eval_shape(convert, jax.ShapeDtypeStruct(shape, dtype))
    return jax.jit(convert, out_shardings=NamedSharding(mesh, specs.fitting(mesh, spec, made.shape)))


def arrange(config: schema.Config, path: str, leaf):
    """A leaf for the mesh, of its canonical form."""
    if "blocks/" in path and moves_layers(config):
        there = (layers(config) >= 0).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(there, leaf[np.maximum(layers(config), 0)], jnp.zeros((), leaf.dtype))
    return _padded(config, path, leaf)


def restore_order(config: schema.Config, path: str, leaf):
    """The canonical form of an arranged leaf."""
    if "blocks/" in path:
        return leaf[_places(config)] if moves_layers(config) else leaf
    dim = _vocabulary_dim(path)
    return leaf if dim is None else jax.lax.slice_in_dim(leaf, 0, config.model.padded_vocab_size, axis=dim)


def pad_vocabulary(config: schema.Config, params: dict) -> dict:
    """Canonical embedding and head as they lie on the mesh; the blocks stay as they are."""
    return map_with_path(lambda path, leaf: _padded(config, path, leaf), params)


def moves_layers(config: schema.Config) -> bool:
    """Whether blocks lie in another order on the mesh, or with zeros between them."""
    return not np.array_equal(layers(config), np.arange(config.model.num_layers))


@functools.cache
def layers(config: schema.Config) -> np.ndarray:
    """The layer at each place of the stack on the mesh, -1 for none."""
    return stages.of(config).layers.reshape(-1)


@functools.cache
def _places(config: schema.Config) -> np.ndarray:
    """The place of each layer."""
    return np.argsort(np.where(layers(config) < 0, layers(config).size, layers(config)), kind="stable")[: config.model.num_layers]


def _differs(config: schema.Config, path: str) -> bool:
    return moves_layers(config) if "blocks/" in path else _vocabulary_dim(path) is not None and _missing(config) > 0


def _missing(config: schema.Config) -> int:
    """Rows that the vocabulary lacks to be parted."""
    return -config.model.padded_vocab_size % (config.mesh.pipe * config.mesh.tensor) if config.mesh.pipe > 1 else 0


def _vocabulary_dim(path: str) -> int | None:
    return next((dim for name, dim in VOCABULARY_DIM.items() if path.endswith(name)), None)


def _padded(config: schema.Config, path: str, leaf):
    dim = _vocabulary_dim(path)
    if dim is None or not _missing(config):
        return leaf
    return jnp.pad(leaf, [(0, _missing(config) if d == dim else 0) for d in range(leaf.ndim)])


def _spec(config: schema.Config, path: str) -> P:
    parameter = _PARAMETER.search(path)
    return specs.spec_of(specs.storage_table(config), parameter[0]) if parameter else P()
