"""Parameters and optimizer state, made or restored in their place on the mesh."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import prng, schema
from mtnlg.core.tree import map_with_path
from mtnlg.model import transformer
from mtnlg.parallel import specs, stages
from mtnlg.train import optimizer as optimizers


class State(NamedTuple):
    """What a step changes."""

    params: dict
    optimizer: tuple


def make(config: schema.Config, mesh: Mesh) -> State:
    """A fresh state: weights from the seed, born in their storage sharding; bitwise the same on every mesh."""
    return jax.jit(lambda: _arranged(config, _fresh(config)), out_shardings=shardings(config, mesh))()


def abstract(config: schema.Config, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state, nothing allocated."""
    return _placed(jax.eval_shape(lambda: _arranged(config, _fresh(config))), shardings(config, mesh))


def shardings(config: schema.Config, mesh: Mesh) -> State:
    """Where every leaf rests: Adam's moments beside their parameter, counters everywhere."""
    shapes = jax.eval_shape(lambda: _fresh(config))
    return map_with_path(lambda path, _: NamedSharding(mesh, _spec(config, path)), shapes)


# The canonical form, in which checkpoints hold a state (parallel/stages.py). Without a pipeline nothing is done.


def abstract_canonical(config: schema.Config, mesh: Mesh) -> State:
    """As `abstract`, of the state in its canonical form."""
    return _placed(jax.eval_shape(lambda: _fresh(config)), _canonical_shardings(config, mesh))


def canonical(config: schema.Config, mesh: Mesh, state: State) -> State:
    """The state in its canonical form; the arrays of `state` stay as they are."""
    if not stages.is_arranged(config):
        return state
    restore = lambda state: map_with_path(lambda path, leaf: stages.restore_order(config, path, leaf), state)  # noqa: E731
    return jax.jit(restore, out_shardings=_canonical_shardings(config, mesh))(state)


def arranged(config: schema.Config, mesh: Mesh, state: State) -> State:
    """The state for training, of its canonical form, whose arrays are given up."""
    if not stages.is_arranged(config):
        return state
    return jax.jit(lambda state: _arranged(config, state), out_shardings=shardings(config, mesh), donate_argnums=0)(state)


def _canonical_shardings(config: schema.Config, mesh: Mesh) -> State:
    shapes = jax.eval_shape(lambda: _fresh(config))
    return map_with_path(lambda path, leaf: NamedSharding(mesh, specs.fitting(mesh, _spec(config, path), leaf.shape)), shapes)


def _spec(config: schema.Config, path: str) -> P:
    for part in ("params/", "/mu/", "/nu/"):
        if part in path:
            return specs.spec_of(specs.storage_table(config), path.partition(part)[2])
    return P()


def _placed(shapes: State, shardings: State) -> State:
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)


def _arranged(config: schema.Config, state: State) -> State:
    return map_with_path(lambda path, leaf: stages.arrange(config, path, leaf), state)


def _fresh(config: schema.Config) -> State:
    params = transformer.init(config.model, prng.key(config.seed, prng.WEIGHTS), jax.numpy.dtype(config.train.param_dtype))
    return State(params, optimizers.adamw(config.optimizer).init(params))
