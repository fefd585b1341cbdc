"""Every collective of one training step, by arithmetic on the config alone: nothing is traced.

It says what `spmd.py` is meant to send. `lowered.py` counts what its program does send, and the tests hold both to be the same.
A step is that of the full batch; a layer is one of this device's (one stage's, with `mesh.pipe`).
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.model import blockwise, count
from mtnlg.model.transformer import PLACES, is_block_kernel
from mtnlg.parallel import specs
from mtnlg.plan import sharding

SAMPLE_AXES = ("replica", "data")
TOKEN_AXES = (*SAMPLE_AXES, "context")
PARTS = ("layer, forward", "layer, backward", "microbatch", "step")


class Collective(NamedTuple):
    """One operand of one collective, on one device. `why` as the program's metadata has it."""

    kind: str  # all_reduce (sums and maxima), all_gather, reduce_scatter, collective_permute
    axes: tuple[str, ...]
    why: str
    dtype: str
    num_elements: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * jnp.dtype(self.dtype).itemsize

    def sent_bytes(self, mesh: schema.Mesh) -> int:
        """What a device sends, with ring algorithms: (n-1)/n of the whole; all_reduce, which scatters and gathers, twice that; what a
        collective_permute passes on."""
        if self.kind == "collective_permute":
            return self.num_bytes
        devices = math.prod(getattr(mesh, axis) for axis in self.axes)
        whole = self.num_bytes * (devices if self.kind == "all_gather" else 1)
        return -(-(2 if self.kind == "all_reduce" else 1) * whole * (devices - 1) // devices)


class Row(NamedTuple):
    """A collective that each layer, microbatch or step issues `times` times; a step has `repeats` of those."""

    part: str
    collective: Collective
    times: int
    repeats: int

    @property
    def count(self) -> int:
        """How often in one step."""
        return self.times * self.repeats


def predict(config: schema.Config) -> list[Row]:
    """The collectives of one training step."""
    step = _Step(config)
    layers = config.model.num_layers // config.mesh.pipe * step.num_microbatches
    repeats = dict(zip(PARTS, (layers, layers, step.num_microbatches, 1), strict=True))
    issued = dict(zip(PARTS, (step.forward, step.backward, step.microbatch, step.once), strict=True))
    return [Row(part, *item, repeats[part]) for part in PARTS for item in Counter(issued[part]()).items()]


def totals(rows: list[Row]) -> Counter:
    """{collective: how often in one step}."""
    found = Counter()
    for row in rows:
        found[row.collective] += row.count
    return found


@dataclass(frozen=True)
class _Weight:
    """A parameter on one device: elements of its stored shard and of the whole that a block sees, of one layer where there are layers."""

    path: str
    stored: int
    whole: int
    in_shards: bool  # along `data`
    is_partial: bool


class _Step:
    """What one device issues, in the order of the program."""

    def __init__(self, config: schema.Config):
        self.config = config
        model, mesh, train = config.model, config.mesh, config.train
        self.num_microbatches = train.batch_size // config.microbatch_rows
        self.num_tokens = config.microbatch_rows // mesh.num_sample_shards * model.seq_len // mesh.context  # of a microbatch, on one device
        self.compute, self.param = train.compute_dtype, train.param_dtype
        self.wide = str(jnp.promote_types(self.compute, jnp.float32))
        self.sums = self.param if train.reduce_dtype == "float32" else train.reduce_dtype
        self.shards_places = mesh.sequence_parallel and mesh.tensor > 1
        dims = specs.data_dims(config, count.abstract_params(model))
        self.weights = [self._weight(row, dims[row.path] is not None) for row in sharding.rows(config)]

    def _weight(self, row: sharding.Row, in_shards: bool) -> _Weight:
        config = self.config
        stored, whole = (math.prod(sharding.local_shape(config, row.path, row.shape, spec)) for spec in (row.storage, row.compute))
        return _Weight(row.path, stored, whole, in_shards, specs.is_partial(config, row.path))

    # What is issued: nothing over axes of degree 1.

    def _over(self, kind: str, axes: tuple[str, ...], why: str, dtype: str, num_elements: int) -> Iterator[Collective]:
        axes = tuple(axis for axis in axes if getattr(self.config.mesh, axis) > 1)
        if axes:
            yield Collective(kind, axes, why, dtype, num_elements)

    def _enter(self, why: str) -> Iterator[Collective]:
        """Into a parallel region."""
        if self.shards_places:
            yield from self._gather_places(why)

    def _enter_backward(self, why: str) -> Iterator[Collective]:
        kind = "reduce_scatter" if self.shards_places else "all_reduce"
        yield from self._over(kind, ("tensor",), f"{why}, backward", self.compute, self._stream)

    def _leave(self, why: str) -> Iterator[Collective]:
        """Out of a parallel region."""
        kind = "reduce_scatter" if self.shards_places else "all_reduce"
        yield from self._over(kind, ("tensor",), why, self.compute, self._stream)

    def _leave_backward(self, why: str) -> Iterator[Collective]:
        if self.shards_places:
            yield from self._gather_places(f"{why}, backward")

    def _gather_places(self, why: str) -> Iterator[Collective]:
        yield from self._over("all_gather", ("tensor",), why, self.compute, self._stream // self.config.mesh.tensor)

    @property
    def _stream(self) -> int:
        """Elements of the residual stream, all places."""
        return self.num_tokens * self.config.model.d_model

    # Keys and values.

    @property
    def rings(self) -> bool:
        """Whether keys and values go round a ring; with stages they are gathered."""
        return self.config.mesh.pipe == 1

    @property
    def _keys(self) -> int:
        """Elements of the keys and values of this device's places and heads."""
        _, num_groups, head_dim = self.config.model.heads
        return 2 * self.num_tokens * max(num_groups // self.config.mesh.tensor, 1) * head_dim

    def _attend(self) -> Iterator[Collective]:
        if self.rings:
            yield from self._ring(blockwise.KEYS, self.compute, self.config.mesh.context - 1)
        else:
            yield from self._over("all_gather", ("context",), blockwise.ALL_KEYS, self.compute, self._keys)

    def _attend_backward(self) -> Iterator[Collective]:
        context = self.config.mesh.context
        if self.rings:
            yield from self._ring(blockwise.KEYS, self.compute, context - 1)
            yield from self._ring(blockwise.GRADIENTS, self.wide, context)
        else:
            why = f"{blockwise.ALL_KEYS}, backward"
            yield from self._over("reduce_scatter", ("context",), why, self.wide, self._keys * context)

    def _ring(self, why: str, dtype: str, steps: int) -> Iterator[Collective]:
        for _ in range(steps):
            yield from self._over("collective_permute", ("context",), why, dtype, self._keys)

    # Weights.

    def _gathered(self, weights: list[_Weight], why: str) -> Iterator[Collective]:
        for weight in weights:
            if weight.in_shards:
                dtype = self.compute if is_block_kernel(weight.path) else self.param
                yield from self._over("all_gather", ("data",), why, dtype, weight.stored)

    def _scattered(self, weights: list[_Weight], why: str) -> Iterator[Collective]:
        for weight in weights:
            if weight.in_shards:
                yield from self._over("reduce_scatter", ("data",), why, self.sums, weight.whole)

    def _of_a_layer(self) -> list[_Weight]:
        """The weights of one block, as it gathers them: of the key/value heads that several devices hold, only the one it reads."""
        layers, groups = self.config.model.num_layers // self.config.mesh.pipe, self.config.model.heads[1]

        def share(weight):
            copies = groups if "attention/key_value/" in weight.path and groups < self.config.mesh.tensor else 1
            return layers * copies

        blocks = [w for w in self.weights if w.path.startswith("blocks/")]
        return [_Weight(w.path, w.stored // share(w), w.whole // share(w), w.in_shards, w.is_partial) for w in blocks]

    # The parts of a step.

    def forward(self) -> Iterator[Collective]:
        if self.config.mesh.zero == 3:
            yield from self._gathered(self._of_a_layer(), "weights, gathered for one block")
        yield from self._enter("attention, into its heads")
        yield from self._attend()
        yield from self._leave("attention, out of its heads")
        yield from self._enter("feed-forward, into its columns")
        yield from self._leave("feed-forward, out of its rows")

    def backward(self) -> Iterator[Collective]:
        # First the forward again: whatever was gathered, under any policy. With full recomputation the ring and the sums too, but for
        # those that only the block's output needs; with a parallel residual that is also the attention's.
        if self.config.mesh.zero == 3:
            yield from self._gathered(self._of_a_layer(), "weights, gathered for one block")
        yield from self._enter("attention, into its heads")
        if self.config.train.recompute == "full" or not self.rings:
            yield from self._attend()
        if self.config.train.recompute == "full" and not self.config.model.parallel_residual:
            yield from self._leave("attention, out of its heads")
        yield from self._enter("feed-forward, into its columns")

        yield from self._leave_backward("feed-forward, out of its rows")
        yield from self._enter_backward("feed-forward, into its columns")
        yield from self._leave_backward("attention, out of its heads")
        yield from self._attend_backward()
        yield from self._enter_backward("attention, into its heads")
        if self.config.mesh.zero == 3:
            yield from self._scattered(self._of_a_layer(), "gradients of one block, over samples")

    def microbatch(self) -> Iterator[Collective]:
        outer = [weight for weight in self.weights if not weight.path.startswith("blocks/")]
        if self.config.mesh.zero == 3:
            yield from self._gathered(outer, "weights, gathered for one block")
        yield from self._over("all_gather", ("context",), PLACES, "int32", 2 * self.num_tokens)
        yield from self._leave("embedding, out of the rows of the vocabulary")
        yield from self._enter("head, into the rows of the vocabulary")
        size = min(self.config.train.loss_chunk_tokens, self.num_tokens)
        for _ in range(-(-self.num_tokens // size)):
            yield from self._over("all_reduce", ("tensor",), "largest logit of the whole vocabulary", self.wide, size)
            why = "sum of exponentials, and the target's logit, over the vocabulary"
            yield from self._over("all_reduce", ("tensor",), why, self.wide, 2 * size)
        yield from self._enter_backward("head, into the rows of the vocabulary")
        yield from self._leave_backward("embedding, out of the rows of the vocabulary")
        if self.config.mesh.zero == 3:
            yield from self._scattered(outer, "gradients of one block, over samples")
        if self.config.mesh.zero == 2:
            yield from self._scattered(self.weights, "gradients, over samples, each device its shards")

    def once(self) -> Iterator[Collective]:
        if self.config.mesh.zero in (1, 2):
            yield from self._gathered(self.weights, "weights, gathered for the step")
        if self.config.mesh.zero == 1:
            yield from self._scattered(self.weights, "gradients, over samples, each device its shards")
        for weight in self.weights:
            axes = ("replica", "context") if weight.in_shards else TOKEN_AXES
            yield from self._over("all_reduce", axes, "gradients, over samples", self.sums, weight.stored)
            if weight.is_partial:
                yield from self._over("all_reduce", ("tensor",), "gradients, over heads or places", self.param, weight.stored)
        yield from self._over("all_reduce", TOKEN_AXES, "loss, over samples", self.wide, 1)
        yield from self._over("all_reduce", TOKEN_AXES, "weight, over samples", self.wide, 1)
        axes = (*TOKEN_AXES, "tensor") if self.shards_places else TOKEN_AXES
        layers = self.config.model.num_layers // self.config.mesh.pipe
        yield from self._over("all_reduce", axes, "mean squares, over samples and places", self.wide, layers)
