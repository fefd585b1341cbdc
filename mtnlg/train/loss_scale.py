"""The scale that keeps float16's small gradients from becoming zero (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

The mean loss of a whole batch times the scale is what is differentiated, and the gradients are divided by it in the parameters' dtype.
Where they overflow the step is skipped and the scale falls; after many steps without overflow it rises: Megatron-LM's rules.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import schema


class LossScale(NamedTuple):
    """Part of the optimizer's state. All scalars: the scale, steps without overflow since it last moved, overflows until it falls."""

    scale: jax.Array
    good_steps: jax.Array
    hysteresis: jax.Array


def is_used(config: schema.Config) -> bool:
    return config.train.compute_dtype == "float16"


def initial(config: schema.LossScale) -> LossScale:
    counts = jnp.zeros((), jnp.int32), jnp.full((), config.hysteresis, jnp.int32)
    return LossScale(jnp.full((), config.initial, jnp.float32), *counts)


def update(config: schema.LossScale, state: LossScale, overflows) -> LossScale:
    """After a step, whose gradients were finite or not.

    The hysteresis is used up by overflows and given back only when the scale rises.
    """
    good_steps = jnp.where(overflows, 0, state.good_steps + 1)
    rises = good_steps == config.window
    hysteresis = jnp.where(overflows, state.hysteresis - 1, jnp.where(rises, config.hysteresis, state.hysteresis))
    falls = overflows & (hysteresis <= 0)
    lower = jnp.maximum(state.scale / 2, config.floor)
    scale = jnp.where(falls, lower, jnp.where(rises, state.scale * 2, state.scale))
    return LossScale(scale, jnp.where(rises, 0, good_steps), jnp.maximum(hysteresis, 0))


def of_a_token(config: schema.Config, scale):
    """What a token's loss is multiplied by: the scale over the number of tokens, rounded down to a power of two so that it is exact."""
    num_tokens = config.train.batch_size * config.model.seq_len
    return scale / 2 ** (num_tokens.bit_length() - 1)
