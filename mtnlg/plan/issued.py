"""What one device issues in each part of a training step: the collectives that `spmd.py` is meant to send, by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp

from mtnlg import pipeline
from mtnlg.core import schema
from mtnlg.model import blockwise, count
from mtnlg.model.objective import HEAD
from mtnlg.model.transformer import PLACES, is_block_kernel
from mtnlg.parallel import specs, stages, zero
from mtnlg.plan import sharding

SAMPLE_AXES = ("replica", "data")
TOKEN_AXES = (*SAMPLE_AXES, "context")
EMBEDDING = "embedding, out of the rows of the vocabulary"
SCATTERED = "gradients, over samples, each device its shards"
ATTENTION_IN, ATTENTION_OUT = "attention, into its heads", "attention, out of its heads"
FEED_FORWARD_IN, FEED_FORWARD_OUT = "feed-forward, into its columns", "feed-forward, out of its rows"


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


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A parameter on one device: elements of its stored shard and of the whole that a block sees, of one layer where there are layers."""

    path: str
    stored: int
    whole: int
    in_shards: bool  # along `data`
    on_all_stages: bool  # in parts along `pipe`, though computed with whole
    is_partial: bool

    @property
    def is_outer(self) -> bool:
        return not self.path.startswith("blocks/")


class Step:
    """What one device issues, in the order of the program."""

    def __init__(self, config: schema.Config):
        self.config = config
        model, mesh, train = config.model, config.mesh, config.train
        self.num_tokens = config.microbatch_rows // mesh.num_sample_shards * model.seq_len // mesh.context  # of a microbatch, on one device
        self.compute, self.param = train.compute_dtype, train.param_dtype
        self.wide = str(jnp.promote_types(self.compute, jnp.float32))
        self.sums = self.param if train.reduce_dtype == "float32" else train.reduce_dtype
        self.shards_places = mesh.sequence_parallel and mesh.tensor > 1
        self.num_layers = stages.of(config).layers[0].size  # on one device, with those that are filled up
        params = count.abstract_params(model)
        dims = [specs.dims_along(axis, config, params) for axis in ("data", "pipe")]
        self.weights = [self._weight(row, *(of[row.path] is not None for of in dims)) for row in sharding.rows(config)]

    def _weight(self, row: sharding.Row, in_shards: bool, on_all_stages: bool) -> _Weight:
        stored, whole = (math.prod(sharding.local_shape(self.config, row.shape, spec)) for spec in (row.storage, row.compute))
        return _Weight(row.path, stored, whole, in_shards, on_all_stages, specs.is_partial(self.config, row.path))

    # What is issued: nothing over axes of degree 1.

    def _over(self, kind: str, axes: tuple[str, ...], why: str, dtype: str, num_elements: int) -> Iterator[Collective]:
        axes = tuple(axis for axis in schema.AXES if axis in axes and getattr(self.config.mesh, axis) > 1)
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
    def _keys(self) -> int:
        """Elements of the keys and values of this device's places and heads."""
        _, num_groups, head_dim = self.config.model.heads
        return 2 * self.num_tokens * max(num_groups // self.config.mesh.tensor, 1) * head_dim

    def _attend(self) -> Iterator[Collective]:
        yield from self._ring(blockwise.KEYS, self.compute, self.config.mesh.context - 1)

    def _attend_backward(self) -> Iterator[Collective]:
        yield from self._ring(blockwise.KEYS, self.compute, self.config.mesh.context - 1)
        yield from self._ring(blockwise.GRADIENTS, self.wide, self.config.mesh.context)

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
        groups = self.config.model.heads[1]

        def own(weight):
            copies = groups if "attention/key_value/" in weight.path and groups < self.config.mesh.tensor else 1
            share = self.num_layers * copies
            return dataclasses.replace(weight, stored=weight.stored // share, whole=weight.whole // share)

        return [own(weight) for weight in self.weights if not weight.is_outer]

    @property
    def _outer(self) -> list[_Weight]:
        return [weight for weight in self.weights if weight.is_outer]

    # The parts of a step.

    def forward(self) -> Iterator[Collective]:
        if self.config.mesh.zero == 3:
            yield from self._gathered(self._of_a_layer(), "weights, gathered for one block")
        yield from self._enter(ATTENTION_IN)
        yield from self._attend()
        yield from self._leave(ATTENTION_OUT)
        yield from self._enter(FEED_FORWARD_IN)
        yield from self._leave(FEED_FORWARD_OUT)

    def backward(self) -> Iterator[Collective]:
        # First the forward again: whatever was gathered, under any policy. With full recomputation the ring and the sums too, but for
        # those that only the block's output needs; with a parallel residual that is also the attention's.
        if self.config.mesh.zero == 3:
            yield from self._gathered(self._of_a_layer(), "weights, gathered for one block")
        yield from self._enter(ATTENTION_IN)
        if self.config.train.recompute == "full":
            yield from self._attend()
        if self.config.train.recompute == "full" and not self.config.model.parallel_residual:
            yield from self._leave(ATTENTION_OUT)
        yield from self._enter(FEED_FORWARD_IN)
        yield from self._pull_back()
        if self.config.mesh.zero == 3:
            yield from self._scattered(self._of_a_layer(), "gradients of one block, over samples")

    def _pull_back(self) -> Iterator[Collective]:
        """Through one block."""
        yield from self._leave_backward(FEED_FORWARD_OUT)
        yield from self._enter_backward(FEED_FORWARD_IN)
        yield from self._leave_backward(ATTENTION_OUT)
        yield from self._attend_backward()
        yield from self._enter_backward(ATTENTION_IN)

    def microbatch(self) -> Iterator[Collective]:
        if self.config.mesh.zero == 3:
            yield from self._gathered(self._outer, "weights, gathered for one block")
        yield from self._places()
        yield from self._leave(EMBEDDING)
        yield from self._head()
        yield from self._leave_backward(EMBEDDING)
        if self.config.mesh.zero == 3:
            yield from self._scattered(self._outer, "gradients of one block, over samples")
        if self.config.mesh.zero == 2:
            yield from self._scattered(self.weights, SCATTERED)

    def _places(self) -> Iterator[Collective]:
        yield from self._over("all_gather", ("context",), PLACES, "int32", 2 * self.num_tokens)

    def _head(self) -> Iterator[Collective]:
        """The loss and the gradient of what it reads."""
        yield from self._enter(HEAD)
        size = min(self.config.train.loss_chunk_tokens, self.num_tokens)
        for _ in range(-(-self.num_tokens // size)):
            yield from self._over("all_reduce", ("tensor",), "largest logit of the whole vocabulary", self.wide, size)
            why = "sum of exponentials, and the target's logit, over the vocabulary"
            yield from self._over("all_reduce", ("tensor",), why, self.wide, 2 * size)
        yield from self._enter_backward(HEAD)

    def tick(self) -> Iterator[Collective]:
        """Without stages there are none."""
        return iter(())

    def once(self) -> Iterator[Collective]:
        if self.config.mesh.zero in (1, 2):
            yield from self._gathered(self.weights, zero.GATHERED["data"])
        for weight in self.weights:
            if weight.on_all_stages:
                yield from self._over("all_gather", ("pipe",), zero.GATHERED["pipe"], self.param, weight.whole // self.config.mesh.pipe)
        if self.config.mesh.zero == 1:
            yield from self._scattered(self.weights, SCATTERED)
        for weight in self._outer:
            if weight.on_all_stages:
                why, whole = "gradients, over stages, each device its shards", weight.stored * self.config.mesh.pipe
                yield from self._over("reduce_scatter", ("pipe",), why, self.param, whole)
            else:
                yield from self._over("all_reduce", ("pipe",), "gradients, over stages", self.param, weight.stored)
        for weight in self.weights:
            axes = ("replica", "context") if weight.in_shards else TOKEN_AXES
            yield from self._over("all_reduce", axes, "gradients, over samples", self.sums, weight.stored)
            if weight.is_partial:
                yield from self._over("all_reduce", ("tensor",), "gradients, over heads or places", self.param, weight.stored)
        yield from self._over("all_reduce", ("pipe", *TOKEN_AXES), "loss, over stages and tokens", self.wide, 1)
        yield from self._over("all_reduce", ("pipe", *TOKEN_AXES), "weight, over stages and tokens", self.wide, 1)
        axes = (*TOKEN_AXES, "tensor") if self.shards_places else TOKEN_AXES
        yield from self._over("all_reduce", axes, "mean squares, over tokens", self.wide, self.num_layers)
        yield from self._over("all_gather", ("pipe",), "mean squares, of all stages", self.wide, self.num_layers)


class StageStep(Step):
    """What one device of a pipeline stage issues (pipeline.py): embedding as on the first stage, head as on the last."""

    def _attend(self) -> Iterator[Collective]:
        yield from self._over("all_gather", ("context",), blockwise.ALL_KEYS, self.compute, self._keys)

    def _attend_backward(self) -> Iterator[Collective]:
        whole = self._keys * self.config.mesh.context
        yield from self._over("reduce_scatter", ("context",), f"{blockwise.ALL_KEYS}, backward", self.wide, whole)

    def backward(self) -> Iterator[Collective]:
        """R, where all is computed again; B, which gathers again what was gathered; W."""
        if self.config.train.recompute == "full":
            yield from self.forward()
        yield from self._enter(ATTENTION_IN)
        yield from self._attend()
        yield from self._enter(FEED_FORWARD_IN)
        yield from self._pull_back()
        if self.config.mesh.zero == 2:
            yield from self._scattered(self._of_a_layer(), SCATTERED)

    def microbatch(self) -> Iterator[Collective]:
        for _ in range(2 if self.config.train.recompute == "full" else 1):
            yield from self._leave(EMBEDDING)
        yield from self._head()
        yield from self._leave_backward(EMBEDDING)
        if self.config.mesh.zero == 2:
            of_head = ("embedding/tokens",) if self.config.model.tie_embeddings else ("head/kernel",)
            yield from self._scattered([weight for weight in self._outer if weight.path in of_head], SCATTERED)
            yield from self._scattered([weight for weight in self._outer if weight.path.startswith("embedding/")], SCATTERED)

    def tick(self) -> Iterator[Collective]:
        yield from self._places()
        message = self._stream // (self.config.mesh.tensor if self.shards_places else 1)
        for why in pipeline.MESSAGES[: 1 if self.config.mesh.pipe == 2 else 2]:  # of two stages both neighbours are one
            yield from self._over("collective_permute", ("pipe",), why, self.compute, message)
