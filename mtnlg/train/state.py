"""Parameters and optimizer state, made or restored in their place on the mesh."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import prng, schema
from mtnlg.core.tree import map_with_path
from mtnlg.model import transformer
from mtnlg.parallel import specs
from mtnlg.train import optimizer as optimizers


class State(NamedTuple):
    """What a step changes."""

    params: dict
    optimizer: tuple


def make(config: schema.Config, mesh: Mesh) -> State:
    """A fresh state: weights from the seed, born in their storage sharding; bitwise the same on every mesh."""
    return jax.jit(lambda: _fresh(config), out_shardings=shardings(config, mesh))()


def abstract(config: schema.Config, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state, nothing allocated."""
    shapes = jax.eval_shape(lambda: _fresh(config))
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, shardings(config, mesh))


def shardings(config: schema.Config, mesh: Mesh) -> State:
    """Where every leaf rests: Adam's moments beside their parameter, counters everywhere."""
    shapes, storage = jax.eval_shape(lambda: _fresh(config)), specs.storage_table(config)

    def of_optimizer(path, leaf):
        for moment in ("/mu/", "/nu/"):
            if moment in path:
                return NamedSharding(mesh, specs.spec_of(storage, path.partition(moment)[2]))
        return NamedSharding(mesh, P())

    return State(specs.shardings(mesh, storage, shapes.params), map_with_path(of_optimizer, shapes.optimizer))


def _fresh(config: schema.Config) -> State:
    params = transformer.init(config.model, prng.key(config.seed, prng.WEIGHTS), jax.numpy.dtype(config.train.param_dtype))
    return State(params, optimizers.adamw(config.optimizer).init(params))
