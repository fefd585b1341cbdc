"""Which pipeline stage holds which layers, and what they cost it.

The model is cut into P x C virtual stages, in its order (`table.Schedule.placement`).
"""

import functools
from typing import NamedTuple

import numpy as np

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import schedule_file
from mtnlg.parallel.table import Op, folded, looped

HEAD_OPS = 3  # the head's products, of its forward and backward, all in one B


class Stages(NamedTuple):
    """placement [P, C]: virtual stages; layers [P, C, S]: layer numbers, -1 where a chunk has none; counts [P, C] of its layers."""

    placement: np.ndarray
    layers: np.ndarray
    counts: np.ndarray


@functools.cache
def of(config: schema.Config) -> Stages:
    """The stages of a config. Raises ConfigError for layers_per_stage that do not fit."""
    placement = _placement(config.pipeline, config.mesh.pipe)
    by_virtual = _layers_of_virtual_stages(config, placement.size)
    starts = np.cumsum([0, *by_virtual])
    layers = np.full((*placement.shape, max(*by_virtual, 1)), -1)
    for at in np.ndindex(placement.shape):
        virtual = placement[at]
        layers[at][: by_virtual[virtual]] = np.arange(starts[virtual], starts[virtual + 1])
    return Stages(placement, layers, np.array(by_virtual)[placement])


def _placement(pipeline: schema.Pipeline, num_stages: int) -> np.ndarray:
    if num_stages > 1 and pipeline.schedule == "zb_v":
        return folded(num_stages)
    if num_stages > 1 and pipeline.schedule.endswith(".csv"):
        return schedule_file.read_csv(pipeline.schedule).placement
    return looped(num_stages, pipeline.num_chunks if num_stages > 1 else 1)


def _layers_of_virtual_stages(config: schema.Config, num_virtual: int) -> tuple[int, ...]:
    given, num_layers = config.pipeline.layers_per_stage, config.model.num_layers
    if config.mesh.pipe == 1 or not given:
        return _balanced(config, num_virtual)
    if len(given) != num_virtual or sum(given) != num_layers or min(given) < 0:
        even = ",".join(map(str, _balanced(config, num_virtual)))
        what = (
            f"pipeline.layers_per_stage={','.join(map(str, given))} is not {num_virtual} numbers of 0 or more, "
            f"one for each part of the model, that add up to model.num_layers={num_layers}"
        )
        raise ConfigError(what, "--config.pipeline.layers_per_stage", f"--config.pipeline.layers_per_stage={even}")
    return given


def _balanced(config: schema.Config, num_virtual: int) -> tuple[int, ...]:
    ops = 4 if config.train.recompute == "full" else 3
    return balanced(config.model, num_virtual, ops * num_virtual // config.mesh.pipe)


def balanced(model: schema.Model, num_virtual: int, ticks: int) -> tuple[int, ...]:
    """Layers of each virtual stage such that a microbatch takes the stages as little as can be, in lockstep.

    Of its `ticks` each lasts as long as the largest part of the model, but for one, in which the last part's B has the head and its
    whole backward beside its layers. Of equal ways the most even.
    """
    if num_virtual == 1:
        return (model.num_layers,)
    layer, head = forward_flops(model)

    def spread(last: int) -> tuple[int, ...]:
        cuts = [(model.num_layers - last) * n // (num_virtual - 1) for n in range(num_virtual)]
        return (*np.diff(cuts).tolist(), last)

    def taken(last: int) -> tuple:
        layers = spread(last)
        return (ticks - 1) * max(layers) + max(*layers, last + HEAD_OPS * head / layer), max(layers) - min(layers)

    return spread(min(range(model.num_layers + 1), key=taken))


def forward_flops(model: schema.Model) -> tuple[int, int]:
    """Floating point operations of the matrix products for a token, forward: (of a block, of the head)."""
    (num_heads, num_groups, head_dim), width = model.heads, model.d_model
    attention = 2 * width * head_dim * (2 * num_heads + 2 * num_groups) + 4 * model.seq_len * num_heads * head_dim
    feed_forward = 2 * width * model.ff_dim * (3 if model.activation == "swiglu" else 2)
    return attention + feed_forward, 2 * width * model.padded_vocab_size


def costs(config: schema.Config) -> np.ndarray:
    """What each op takes on each stage and chunk, [P, C, ops], in units of the forward of one block.

    Forward, forward again, backward to the input and backward to the kernels are alike. The head and its whole backward belong to the
    last B. Lookups and messages count nothing.
    """
    stages, (layer, head) = of(config), forward_flops(config.model)
    found = np.repeat(stages.counts[:, :, None].astype(float), len(Op), axis=2)
    found[:, :, Op.IDLE] = 0
    found[:, :, Op.B][stages.placement == stages.placement.max()] += HEAD_OPS * head / layer
    return found
