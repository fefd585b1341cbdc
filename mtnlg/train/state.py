"""Parameters and optimizer state, made or restored in their place on the mesh."""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from mtnlg.core import prng, schema
from mtnlg.model import transformer
from mtnlg.parallel import arrangement
from mtnlg.train import loss_scale
from mtnlg.train import optimizer as optimizers


class State(NamedTuple):
    """What a step changes. optimizer: optax's, and behind it, in float16, a LossScale."""

    params: dict
    optimizer: tuple


def make(config: schema.Config, mesh: Mesh) -> State:
    """A fresh state: weights from the seed, born in their storage sharding; bitwise the same on every mesh."""
    return jax.jit(lambda: _arranged(config), out_shardings=shardings(config, mesh))()


def abstract(config: schema.Config, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state, nothing allocated."""
    return _placed(jax.eval_shape(lambda: _arranged(config)), shardings(config, mesh))


def abstract_canonical(config: schema.Config, mesh: Mesh) -> State:
    """As `abstract`, of the state as checkpoints have it (parallel/arrangement.py)."""
    shapes = jax.eval_shape(lambda: _fresh(config))
    return _placed(shapes, arrangement.canonical_shardings(config, mesh, shapes))


def shardings(config: schema.Config, mesh: Mesh) -> State:
    """Where every leaf rests: Adam's moments beside their parameter, counters everywhere."""
    return arrangement.shardings(config, mesh, jax.eval_shape(lambda: _fresh(config)))


def _placed(shapes: State, shardings: State) -> State:
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, shardings)


def _arranged(config: schema.Config) -> State:
    """Every layer is born in its place: nothing of other stages is made and sent."""
    layers = arrangement.layers(config) if arrangement.moves_layers(config) else None
    params = arrangement.pad_vocabulary(config, _params(config, layers))
    return _beginning(config, params)


def _fresh(config: schema.Config) -> State:
    return _beginning(config, _params(config, None))


def _beginning(config: schema.Config, params: dict) -> State:
    scale = (loss_scale.initial(config.loss_scale),) if loss_scale.is_used(config) else ()
    return State(params, optimizers.adamw(config.optimizer).init(params) + scale)


def _params(config: schema.Config, layers) -> dict:
    key, dtype = prng.key(config.seed, prng.WEIGHTS), jax.numpy.dtype(config.train.param_dtype)
    return transformer.init(config.model, key, dtype, layers)
