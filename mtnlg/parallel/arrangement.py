"""How parameters lie for pipeline stages.

On the mesh the blocks are stacked stage by stage, chunk by chunk, each chunk filled up with zeros to the longest; the vocabulary is filled
up so that stages and tensor shards divide it. That is the *arranged* form; checkpoints have the model's own, *canonical* form. Where both
are the same, and without a pipeline they are, nothing is moved. Zeros stay zeros: their gradients are, and so are Adam's moments.

A path may be that of a parameter or end in one, as those of Adam's moments do.
"""

import functools
import re

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
    """Where a canonical tree lies, close to its arranged form: axes that do not divide a dim leave it whole."""
    return map_with_path(lambda path, leaf: NamedSharding(mesh, specs.fitting(mesh, _spec(config, path), leaf.shape)), tree)


def canonical(config: schema.Config, mesh: Mesh, tree):
    """An arranged tree in its canonical form; its own arrays stay as they are."""
    if not is_arranged(config):
        return tree
    restore = lambda tree: map_with_path(lambda path, leaf: restore_order(config, path, leaf), tree)  # noqa: E731
    return jax.jit(restore, out_shardings=canonical_shardings(config, mesh, jax.eval_shape(restore, tree)))(tree)


def arranged(config: schema.Config, mesh: Mesh, tree):
    """A canonical tree in its arranged form."""
    if not is_arranged(config):
        return tree
    return jax.jit(functools.partial(arrange_all, config), out_shardings=shardings(config, mesh, tree))(tree)


def arrange_all(config: schema.Config, tree):
    """`arrange` of every leaf."""
    return map_with_path(lambda path, leaf: arrange(config, path, leaf), tree)


def _spec(config: schema.Config, path: str) -> P:
    parameter = _PARAMETER.search(path)
    return specs.spec_of(specs.storage_table(config), parameter[0]) if parameter else P()


def _vocabulary_padding(config: schema.Config) -> int:
    return -config.model.padded_vocab_size % (config.mesh.pipe * config.mesh.tensor) if config.mesh.pipe > 1 else 0


@functools.cache
def _order(config: schema.Config) -> tuple[np.ndarray, np.ndarray]:
    """(layer at each arranged place, -1 for none; arranged place of each layer)."""
    layers = stages.of(config).layers.reshape(-1)
    return layers, np.argsort(np.where(layers < 0, len(layers), layers), kind="stable")[: config.model.num_layers]


def _is_canonical(config: schema.Config, path: str) -> bool:
    layers, _ = _order(config)
    return "blocks/" not in path or np.array_equal(layers, np.arange(config.model.num_layers))


def is_arranged(config: schema.Config) -> bool:
    """Whether the arranged form differs from the canonical one at all."""
    return config.mesh.pipe > 1 and (not _is_canonical(config, "blocks/") or _vocabulary_padding(config) > 0)


def arrange(config: schema.Config, path: str, leaf):
    """A leaf for the mesh, of its canonical form."""
    if config.mesh.pipe == 1:
        return leaf
    if not _is_canonical(config, path):
        layers, _ = _order(config)
        there = (layers >= 0).reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(there, leaf[np.maximum(layers, 0)], jnp.zeros((), leaf.dtype))
    padding = _vocabulary_padding(config)
    for name, dim in VOCABULARY_DIM.items():
        if path.endswith(name) and padding:
            return jnp.pad(leaf, [(0, padding if d == dim else 0) for d in range(leaf.ndim)])
    return leaf


def restore_order(config: schema.Config, path: str, leaf):
    """The canonical form of an arranged leaf."""
    if config.mesh.pipe == 1:
        return leaf
    if not _is_canonical(config, path):
        return leaf[_order(config)[1]]
    for name, dim in VOCABULARY_DIM.items():
        if path.endswith(name) and _vocabulary_padding(config):
            return leaf[tuple(slice(config.model.padded_vocab_size if d == dim else None) for d in range(leaf.ndim))]
    return leaf
