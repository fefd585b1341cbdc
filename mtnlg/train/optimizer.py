"""The optimizer: plain optax on the (sharded) parameters."""

import jax.numpy as jnp
import optax

from mtnlg.core import schema
from mtnlg.core.tree import map_with_path


def decays(path: str) -> bool:
    """Whether weight decay shrinks this parameter: matrices and embeddings, not biases and norm scales (Megatron-LM)."""
    return path.rpartition("/")[2] not in ("bias", "scale")


def adamw(config: schema.Optimizer) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam, decoupled decay (Loshchilov & Hutter 2019). Updates still want `* -learning_rate`."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=lambda params: map_with_path(lambda path, _: decays(path), params)),
    )


def apply(params, updates, learning_rate):
    """params - learning_rate * updates, in the parameters' dtype."""
    return optax.apply_updates(params, optax.tree.scale(-jnp.asarray(learning_rate), updates))
