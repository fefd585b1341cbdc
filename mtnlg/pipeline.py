"""The executor of pipeline schedules: one stage's part of a step, tick by tick, as a timetable says (parallel/program.py).

Inside `shard_map`; every device of a stage does the same, and stages differ only in what their column of the timetable says. In a tick a
stage reads its mailbox, does one op, and sends what it made to both neighbours; who wants it keeps it. The ops are loops over the layers
of a chunk that make no turn where it is another op's tick: a loop updates the rings and the sums of gradients in place, which a branch
would copy. Collectives inside an op go over axes along which all devices are of one stage; the messages are permuted outside of the ops.

Nothing is differentiated through the loop over ticks: `model/split.py` cuts the backward of a block in two, and what one op makes for a
later one lies in rings of as many slots as the schedule needs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import collectives, schema
from mtnlg.core.collectives import TensorShard
from mtnlg.core.tree import cast
from mtnlg.model import objective, transformer
from mtnlg.model.split import SplitBlock, joined, parts
from mtnlg.parallel import stages
from mtnlg.parallel.table import Op
from mtnlg.parallel.timetable import Sizes


class Sums(NamedTuple):
    """What a stage adds up over microbatches. Gradients by path: of its blocks' kernels and vectors, [C*S, ...], and of the rest."""

    loss: jax.Array
    weight: jax.Array
    squares_N: jax.Array
    kernels: dict
    vectors: dict
    outer: dict


class Rings(NamedTuple):
    """mailbox [slots, B, L, D], the last slot for what nobody wants; what F kept for B and B for W, [slots, S, ...] each."""

    mailbox: jax.Array
    kept: list
    deferred: list


class Stage:
    """One stage: its layers, and the ops on them. `scatter_layer` and `scatter_outer` make the gradients of a microbatch what is added up.

    params: blocks' kernels and vectors [C*S, ...], whole but for tensor shards, in the compute dtype; embedding, final norm and head.
    """

    def __init__(self, config: schema.Config, shard: TensorShard, params: dict, batch: dict, dropout_of: Callable):
        self.config, self.model, self.shard, self.batch, self.dropout_of = config, config.model, shard, batch, dropout_of
        self.blocks, self.outer = params["blocks"], {name: part for name, part in params.items() if name != "blocks"}
        self.dtype = jnp.dtype(config.train.compute_dtype)
        self.split = SplitBlock(config.model, shard, config.train.recompute)
        plan = stages.of(config)
        here = jax.lax.axis_index("pipe")
        self.layers_CS, self.counts_C = jnp.asarray(plan.layers)[here], jnp.asarray(plan.counts)[here]
        self.num_chunks, self.num_slots = plan.layers.shape[1:]
        self.last = plan.placement.size - 1

    def microbatch(self, number) -> dict:
        return {name: jax.lax.dynamic_index_in_dim(field, number, keepdims=False) for name, field in self.batch.items()}

    def layer(self, chunk, number) -> dict:
        at = chunk * self.num_slots + number
        return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False), self.blocks)

    def context(self, chunk, number, fields: dict, microbatch):
        """What a block reads beside the residual stream: (its parameters, places, dropout)."""
        places = transformer.places_of(self.model, fields["positions"], fields["segment_ids"], self.dtype)
        dropout = self.dropout_of(microbatch)
        return self.layer(chunk, number), places, dropout if dropout is None else dropout.at_layer(self.layers_CS[chunk, number])

    def embedded(self, embedding: dict, microbatch):
        fields = self.microbatch(microbatch)
        return transformer.first_hidden(self.model, embedding, fields, self.dropout_of(microbatch), self.dtype, self.shard)

    def loss(self, outer: dict, x_BLD, fields: dict):
        x_BLD = transformer.final_norm(self.model, outer, x_BLD)
        return objective.loss_sum(self.config, outer, x_BLD, fields, self.shard)

    @property
    def head(self) -> dict:
        """Of the outer parameters, those that the loss reads."""
        if self.model.tie_embeddings:
            return {"final_norm": self.outer["final_norm"], "embedding": {"tokens": self.outer["embedding"]["tokens"]}}
        return {"final_norm": self.outer["final_norm"], "head": self.outer["head"]}


def loss_and_grad(
    config: schema.Config,
    shard: TensorShard,
    params: dict,
    batch: dict,
    timetable: dict,
    sizes: Sizes,
    dropout_of: Callable,
    scatter_layer: Callable,
    scatter_outer: Callable,
) -> dict:
    """Sums over the microbatches of a step on this device: {'loss', 'weight', 'squares_N' [C*S], 'grads'}.

    loss and weight on the last stage, zero elsewhere; the gradients of embedding, final norm and head on the stages that compute with
    them. batch: fields [M, B, L]. timetable: columns [T] of this stage by name, and `num_ticks`. dropout_of(microbatch) gives its masks.
    scatter_layer({path: gradient}) and scatter_outer(tree) make what is added up of a microbatch's gradients, of one layer's kernels and
    of the outer parameters.
    """
    stage = Stage(config, shard, params, batch, dropout_of)
    rows, length = batch["tokens"].shape[1:]
    x_shape = (rows, length // (shard.size if shard.shards_sequence else 1), config.model.d_model)
    nothing = jnp.zeros(x_shape, stage.dtype)
    again = config.train.recompute == "full"

    # What lies in the rings, found out by tracing the ops once.
    def kept_and_deferred():
        place = stage.context(0, 0, stage.microbatch(0), 0)
        _, kept = stage.split.keep(nothing, *place)
        return kept, stage.split.backward(kept, nothing, *place)[2]

    def ring(size, leaf):
        return jnp.zeros((size, stage.num_slots, *leaf.shape), leaf.dtype)

    kept, deferred = jax.eval_shape(kept_and_deferred)
    rings = Rings(
        jnp.zeros((sizes.mail + 1, *x_shape), stage.dtype),
        [ring(sizes.kept, leaf) for leaf in kept],
        [ring(sizes.deferred, leaf) for leaf in deferred],
    )
    kernels, vectors = parts(stage.blocks)
    wide = jnp.promote_types(stage.dtype, jnp.float32)
    start = Sums(
        jnp.zeros((), wide),
        jnp.zeros((), wide),
        jnp.zeros(stage.num_chunks * stage.num_slots, wide),
        _stacked_zeros(lambda: scatter_layer(parts(stage.layer(0, 0))[0]), stage.num_chunks * stage.num_slots),
        _zeros(lambda: cast(vectors, config.train.param_dtype)),
        _zeros(lambda: scatter_outer(stage.outer)),
    )

    def tick(t, carry):
        rings, sums = carry
        row = {name: jax.lax.dynamic_index_in_dim(column, t, keepdims=False) for name, column in timetable.items() if name != "num_ticks"}
        fields = stage.microbatch(row["microbatch"])
        is_first, is_last = row["virtual_stage"] == 0, row["virtual_stage"] == stage.last
        num_layers, base = stage.counts_C[row["chunk"]], row["chunk"] * stage.num_slots

        def turns(op):
            return jnp.where(row["op"] == op, num_layers, 0)

        def context(number):
            return stage.context(row["chunk"], number, fields, row["microbatch"])

        # F, and R: the forward again
        x_BLD = jax.lax.dynamic_index_in_dim(rings.mailbox, row["mail"], keepdims=False)
        begins = is_first & ((row["op"] == Op.F) | (row["op"] == Op.R))
        x_BLD = jax.lax.cond(begins, lambda: stage.embedded(stage.outer["embedding"], row["microbatch"]), lambda: x_BLD)

        def forward(number, carry):
            x_BLD, squares_N = carry
            y_BLD = stage.split.forward(x_BLD, *context(number))
            return y_BLD, squares_N.at[base + number].add(transformer.mean_square(y_BLD))

        def keep(number, carry):
            x_BLD, squares_N, ring = carry
            y_BLD, kept = stage.split.keep(x_BLD, *context(number))
            ring = _put(ring, row["kept"], number, kept)
            return y_BLD, squares_N if again else squares_N.at[base + number].add(transformer.mean_square(y_BLD)), ring

        squares_N = sums.squares_N
        if again:
            x_BLD, squares_N = jax.lax.fori_loop(0, turns(Op.F), forward, (x_BLD, squares_N))
        x_BLD, squares_N, kept = jax.lax.fori_loop(0, turns(Op.R if again else Op.F), keep, (x_BLD, squares_N, rings.kept))

        # B: on the last stage it begins with the loss, on the first it ends with the embedding
        def head(carry):
            x_BLD, loss, weight, outer = carry
            total, (d_head, d_x_BLD) = jax.value_and_grad(stage.loss, argnums=(0, 1))(stage.head, x_BLD, fields)
            weight = weight + objective.weight_sum(fields, total)
            return d_x_BLD, loss + total, weight, _added(outer, scatter_outer(d_head))

        def backward(turn, carry):
            d_y_BLD, vectors, ring = carry
            number = num_layers - 1 - turn
            layer_kept = _take(kept, row["kept"], number)
            d_x_BLD, d_vectors, deferred = stage.split.backward(layer_kept, d_y_BLD, *context(number))
            vectors = {path: leaf.at[base + number].add(d_vectors[path].astype(leaf.dtype)) for path, leaf in vectors.items()}
            return d_x_BLD, vectors, _put(ring, row["deferred"], number, deferred)

        def embedding(outer):
            _, pull_back = jax.vjp(lambda embedding: stage.embedded(embedding, row["microbatch"]), stage.outer["embedding"])
            return _added(outer, scatter_outer({"embedding": pull_back(x_BLD)[0]}))

        is_backward = row["op"] == Op.B
        x_BLD, loss, weight, outer = _once_if(is_backward & is_last, head, (x_BLD, sums.loss, sums.weight, sums.outer))
        x_BLD, vectors, deferred = jax.lax.fori_loop(0, turns(Op.B), backward, (x_BLD, sums.vectors, rings.deferred))
        outer = _once_if(is_backward & is_first, embedding, outer)

        # W
        def weights(number, sums):
            grads = scatter_layer(stage.split.weights(_take(deferred, row["deferred"], number), parts(stage.layer(row["chunk"], number))[0]))
            return {path: leaf.at[base + number].add(grads[path].astype(leaf.dtype)) for path, leaf in sums.items()}

        kernels = jax.lax.fori_loop(0, turns(Op.W), weights, sums.kernels)

        mailbox = rings.mailbox
        for slot, message in (
            ("from_previous", collectives.permute(x_BLD, "pipe", 1, "messages, to the next stage")),
            ("from_next", collectives.permute(x_BLD, "pipe", -1, "messages, to the stage before")),
            ("from_self", x_BLD),
        ):
            mailbox = jax.lax.dynamic_update_index_in_dim(mailbox, message, row[slot], 0)
        return Rings(mailbox, kept, deferred), Sums(loss, weight, squares_N, kernels, vectors, outer)

    _, sums = jax.lax.fori_loop(0, timetable["num_ticks"], tick, (rings, start))
    grads = {**sums.outer, "blocks": joined({**sums.kernels, **sums.vectors})}
    return {"loss": sums.loss, "weight": sums.weight, "squares_N": sums.squares_N, "grads": grads}


def _zeros(tree: Callable):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(tree))


def _stacked_zeros(tree: Callable, number: int):
    return jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), jax.eval_shape(tree))


def _once_if(condition, function: Callable, carry):
    """`function(carry)` if the condition holds, else the carry: a loop of one turn or none, which updates in place."""
    return jax.lax.fori_loop(0, condition.astype(jnp.int32), lambda _, carry: function(carry), carry)


def _put(ring: list, slot, number, leaves: list) -> list:
    """Writes one layer's arrays into a slot."""
    return [
        jax.lax.dynamic_update_slice(into, leaf[None, None], _at(slot, number, leaf.ndim)) for into, leaf in zip(ring, leaves, strict=True)
    ]


def _take(ring: list, slot, number) -> list:
    """One layer's arrays out of a slot."""
    return [jax.lax.dynamic_slice(leaf, _at(slot, number, leaf.ndim - 2), (1, 1, *leaf.shape[2:]))[0, 0] for leaf in ring]


def _at(slot, number, num_dims: int) -> tuple:
    return tuple(jnp.asarray(index, jnp.int32) for index in (slot, number, *[0] * num_dims))


def _added(sums: dict, grads: dict) -> dict:
    """sums + grads, where `grads` has some of the leaves only."""
    return {name: (_added(part, grads[name]) if isinstance(part, dict) else part + grads[name].astype(part.dtype)) if name in grads else part
            for name, part in sums.items()}  # fmt: skip
