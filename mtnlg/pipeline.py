"""The executor of pipeline schedules: one stage's part of a step, tick by tick, as a timetable says (parallel/program.py).

Inside `shard_map`; every device of a stage does the same, and stages differ only in what their column of the timetable says. In a tick a
stage reads its mailbox, does one op, and sends what it made to both neighbours; who wants it keeps it. The ops are loops over the layers
of a chunk that make no turn where it is another op's tick: a loop updates the rings and the sums of gradients in place, which a branch
would copy. Collectives inside an op go over axes along which all devices are of one stage; the messages are permuted outside of the ops.

Nothing is differentiated through the loop over ticks: `model/split.py` cuts the backward of a block in two, and what one op makes for a
later one lies in rings of as many slots as the schedule needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import collectives, schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.tree import by_path, cast, map_with_path, nested
from mtnlg.model import objective, transformer
from mtnlg.model.attention_core import Places
from mtnlg.model.split import SplitBlock, parts
from mtnlg.parallel import stages
from mtnlg.parallel.table import Op
from mtnlg.parallel.timetable import Sizes

# Names of loops and branches, beside those over the layers of an op, in the program: `mtnlg plan` knows how often each is run.
TICKS, HEAD, EMBEDDING, EMBEDDING_BACKWARD = "ticks", "head", "embedding", "embedding, backward"
MESSAGES = "messages, to the next stage", "messages, to the stage before"


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


@dataclass(frozen=True)
class Row:
    """What this stage does in a tick (parallel/program.py), and what follows from it."""

    columns: dict
    fields: dict  # of the microbatch
    places: Places
    base: jax.Array  # place of the chunk's first layer among the stage's
    num_layers: jax.Array
    is_first: jax.Array  # whether the chunk is the model's first
    is_last: jax.Array

    def __getitem__(self, name: str):
        return self.columns[name]

    def over_layers(self, op: Op, body: Callable, carry):
        """A loop over the layers of the chunk, without a turn in the tick of another op."""
        return _loop(op.name, jnp.where(self["op"] == op, self.num_layers, 0), body, carry)


class Stage:
    """What one stage has, and what its ops have in common.

    params: the blocks' [C*S, ...], whole but for tensor shards, in the compute dtype; embedding, final norm and head. batch: fields
    [M, B, L]. dropout_of(microbatch) gives its masks, or None.
    """

    def __init__(self, config: schema.Config, shard: TensorShard, context: ContextShard, params: dict, batch: dict, dropout_of: Callable):
        self.config, self.model, self.shard, self.context = config, config.model, shard, context
        self.batch, self.dropout_of = batch, dropout_of
        self.blocks, self.outer = params["blocks"], {name: part for name, part in params.items() if name != "blocks"}
        self.dtype = jnp.dtype(config.train.compute_dtype)
        self.split = SplitBlock(config.model, shard, context, config.train.recompute)
        cut, here = stages.of(config), jax.lax.axis_index("pipe")
        self.layers_CS, self.counts_C = jnp.asarray(cut.layers)[here], jnp.asarray(cut.counts)[here]
        self.num_slots, self.num_layers = cut.layers.shape[2], cut.layers[0].size
        self.last = cut.placement.size - 1
        rows, length = batch["tokens"].shape[1:]
        self.x_shape = (rows, length // (shard.size if shard.shards_sequence else 1), config.model.d_model)

    def row(self, timetable: dict, tick) -> Row:
        columns = {name: _pick(column, tick) for name, column in timetable.items() if name != "num_ticks"}
        virtual, chunk = columns["virtual_stage"], columns["chunk"]
        ends = (virtual == 0, virtual == self.last)
        fields = {name: _pick(field, columns["microbatch"]) for name, field in self.batch.items()}
        places = transformer.places_of(self.model, fields["positions"], fields["segment_ids"], self.dtype, self.context)
        return Row(columns, fields, places, chunk * self.num_slots, self.counts_C[chunk], *ends)

    def layer(self, row: Row, number):
        """What a block reads beside the residual stream: (its parameters, places, dropout)."""
        dropout = self.dropout_of(row["microbatch"])
        at_layer = dropout if dropout is None else dropout.at_layer(self.layers_CS[row["chunk"], number])
        return jax.tree.map(lambda leaf: _pick(leaf, row.base + number), self.blocks), row.places, at_layer

    def embedded(self, embedding: dict, row: Row):
        return transformer.first_hidden(self.model, embedding, row.fields, self.dropout_of(row["microbatch"]), self.dtype, self.shard)

    def read(self, mailbox, row: Row):
        """What the tick's op starts from: its letter, or, for the model's first chunk, the embedding."""
        begins = row.is_first & ((row["op"] == Op.F) | (row["op"] == Op.R))
        x_BLD = _pick(mailbox, row["mail"])
        with jax.named_scope(EMBEDDING):
            return jax.lax.cond(begins, lambda: self.embedded(self.outer["embedding"], row), lambda: x_BLD)

    def send(self, mailbox, row: Row, x_BLD):
        """The mailbox after every stage has sent what it made to both neighbours, which of two stages are one."""
        letters = {"from_self": x_BLD, "from_previous": collectives.permute(x_BLD, "pipe", 1, MESSAGES[0])}
        if collectives.degree("pipe") > 2:
            letters["from_next"] = collectives.permute(x_BLD, "pipe", -1, MESSAGES[1])
        for slot, letter in letters.items():
            mailbox = jax.lax.dynamic_update_index_in_dim(mailbox, letter, row[slot], 0)
        return mailbox

    def empty_mailbox(self, num_slots: int):
        return jnp.zeros((num_slots + 1, *self.x_shape), self.dtype)

    @property
    def head(self) -> dict:
        """Of the outer parameters, those that the loss reads."""
        tied = {"embedding": {"tokens": self.outer["embedding"]["tokens"]}}
        return {"final_norm": self.outer["final_norm"]} | (tied if self.model.tie_embeddings else {"head": self.outer["head"]})


def loss_and_grad(stage: Stage, timetable: dict, sizes: Sizes, scatter_layer: Callable, scatter_outer: Callable) -> dict:
    """Sums over the microbatches of a step on this device: {'loss', 'weight', 'squares_N' [C*S], 'grads'}.

    loss and weight on the last stage, zero elsewhere; the gradients of embedding, final norm and head on the stages that compute with
    them. timetable: columns [T] of this stage by name, and `num_ticks`. scatter_layer({path: gradient}) and scatter_outer(tree) make what
    is added up of a microbatch's gradients, of one layer's kernels and of the outer parameters.
    """
    config, split, again = stage.config, stage.split, stage.config.train.recompute == "full"
    rings, start = _empty_rings(stage, timetable, sizes), _nothing(stage, timetable, scatter_layer, scatter_outer)

    def tick(t, carry):
        rings, sums = carry
        row = stage.row(timetable, t)

        # F, and R: the forward again
        def forward(number, carry):
            x_BLD, squares_N = carry
            y_BLD = split.forward(x_BLD, *stage.layer(row, number))
            return y_BLD, squares_N.at[row.base + number].add(transformer.mean_square(y_BLD))

        def keep(number, carry):
            x_BLD, squares_N, ring = carry
            y_BLD, kept = split.keep(x_BLD, *stage.layer(row, number))
            if not again:
                squares_N = squares_N.at[row.base + number].add(transformer.mean_square(y_BLD))
            return y_BLD, squares_N, _put(ring, row["kept"], number, kept)

        x_BLD, squares_N = stage.read(rings.mailbox, row), sums.squares_N
        if again:
            x_BLD, squares_N = row.over_layers(Op.F, forward, (x_BLD, squares_N))
        x_BLD, squares_N, kept = row.over_layers(Op.R if again else Op.F, keep, (x_BLD, squares_N, rings.kept))

        # B: with the model's last chunk it begins with the loss, with the first it ends with the embedding
        def loss_of(head, x_BLD):
            x_BLD = transformer.final_norm(stage.model, head, x_BLD)
            return objective.loss_sum(config, head, x_BLD, row.fields, stage.shard)

        def head(carry):
            x_BLD, loss, weight, outer = carry
            total, (d_head, d_x_BLD) = jax.value_and_grad(loss_of, argnums=(0, 1))(stage.head, x_BLD)
            return d_x_BLD, loss + total, weight + objective.weight_sum(row.fields, total), _added(outer, scatter_outer(d_head))

        def backward(turn, carry):
            d_y_BLD, vectors, ring = carry
            number = row.num_layers - 1 - turn
            d_x_BLD, d_vectors, deferred = split.backward(_take(kept, row["kept"], number), d_y_BLD, *stage.layer(row, number))
            vectors = {path: leaf.at[row.base + number].add(d_vectors[path].astype(leaf.dtype)) for path, leaf in vectors.items()}
            return d_x_BLD, vectors, _put(ring, row["deferred"], number, deferred)

        def embedding(carry):
            # Were x the same after the turn, XLA would do all this before the loop, which is in every tick.
            x_BLD, outer = carry
            _, pull_back = jax.vjp(lambda embedding: stage.embedded(embedding, row), stage.outer["embedding"])
            return jnp.zeros_like(x_BLD), _added(outer, scatter_outer({"embedding": pull_back(x_BLD)[0]}))

        is_backward = row["op"] == Op.B
        x_BLD, loss, weight, outer = _once_if(HEAD, is_backward & row.is_last, head, (x_BLD, sums.loss, sums.weight, sums.outer))
        x_BLD, vectors, deferred = row.over_layers(Op.B, backward, (x_BLD, sums.vectors, rings.deferred))
        x_BLD, outer = _once_if(EMBEDDING_BACKWARD, is_backward & row.is_first, embedding, (x_BLD, outer))

        # W
        def weights(number, kernels):
            grads = scatter_layer(split.weights(_take(deferred, row["deferred"], number), parts(stage.layer(row, number)[0])[0]))
            return {path: leaf.at[row.base + number].add(grads[path].astype(leaf.dtype)) for path, leaf in kernels.items()}

        kernels = row.over_layers(Op.W, weights, sums.kernels)
        mailbox = stage.send(rings.mailbox, row, x_BLD)
        return Rings(mailbox, kept, deferred), Sums(loss, weight, squares_N, kernels, vectors, outer)

    _, sums = _loop(TICKS, timetable["num_ticks"], tick, (rings, start))
    grads = {**sums.outer, "blocks": nested({**sums.kernels, **sums.vectors})}
    return {"loss": sums.loss, "weight": sums.weight, "squares_N": sums.squares_N, "grads": grads}


def scores(stage: Stage, timetable: dict, sizes: Sizes):
    """(negative log-likelihoods, whether the target was the likeliest) [M, B, L] each, on the last stage; zero elsewhere.

    The timetable has forwards only.
    """
    shape = stage.batch["tokens"].shape

    def tick(t, carry):
        mailbox, *found = carry
        row = stage.row(timetable, t)
        block = lambda number, x_BLD: stage.split.forward(x_BLD, *stage.layer(row, number))  # noqa: E731
        x_BLD = row.over_layers(Op.F, block, stage.read(mailbox, row))

        def head(found):
            last_BLD = transformer.final_norm(stage.model, stage.outer, x_BLD)
            made = objective.scores(stage.config, stage.outer, last_BLD, row.fields, stage.shard)
            return [jax.lax.dynamic_update_index_in_dim(a, one, row["microbatch"], 0) for a, one in zip(found, made, strict=True)]

        return stage.send(mailbox, row, x_BLD), *_once_if(HEAD, (row["op"] == Op.F) & row.is_last, head, found)

    wide = jnp.promote_types(stage.dtype, jnp.float32)
    start = (stage.empty_mailbox(sizes.mail), jnp.zeros(shape, wide), jnp.zeros(shape, bool))
    _, nll, greedy = _loop(TICKS, timetable["num_ticks"], tick, start)
    return nll, greedy


def _empty_rings(stage: Stage, timetable: dict, sizes: Sizes) -> Rings:
    """Rings of zeros; what a layer keeps is found out by tracing the ops once."""

    def kept_and_deferred():
        x_BLD, context = jnp.zeros(stage.x_shape, stage.dtype), stage.layer(stage.row(timetable, 0), 0)
        _, kept = stage.split.keep(x_BLD, *context)
        return kept, stage.split.backward(kept, x_BLD, *context)[2]

    kept, deferred = jax.eval_shape(kept_and_deferred)
    ring = lambda size, leaf: jnp.zeros((size, stage.num_slots, *leaf.shape), leaf.dtype)  # noqa: E731
    mailbox = stage.empty_mailbox(sizes.mail)
    return Rings(mailbox, [ring(sizes.kept, leaf) for leaf in kept], [ring(sizes.deferred, leaf) for leaf in deferred])


def _nothing(stage: Stage, timetable: dict, scatter_layer: Callable, scatter_outer: Callable) -> Sums:
    def shapes():
        layer, _, _ = stage.layer(stage.row(timetable, 0), 0)
        kernels, vectors = parts(layer)
        return scatter_layer(kernels), cast(vectors, stage.config.train.param_dtype), scatter_outer(stage.outer)

    kernels, vectors, outer = jax.eval_shape(shapes)
    wide = jnp.promote_types(stage.dtype, jnp.float32)
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)  # noqa: E731
    stacked = lambda leaf: jnp.zeros((stage.num_layers, *leaf.shape), leaf.dtype)  # noqa: E731
    of_blocks = [{path: stacked(leaf) for path, leaf in leaves.items()} for leaves in (kernels, vectors)]
    return Sums(jnp.zeros((), wide), jnp.zeros((), wide), jnp.zeros(stage.num_layers, wide), *of_blocks, jax.tree.map(zeros, outer))


def _pick(array, index):
    return jax.lax.dynamic_index_in_dim(array, index, keepdims=False)


def _loop(name: str, turns, body: Callable, carry):
    """A loop by its name in the program."""
    with jax.named_scope(name):
        return jax.lax.fori_loop(0, turns, body, carry)


def _once_if(name: str, condition, function: Callable, carry):
    """`function(carry)` if the condition holds, else the carry: a loop of one turn or none, which updates in place."""
    return _loop(name, condition.astype(jnp.int32), lambda _, carry: function(carry), carry)


def _put(ring: list, slot, number, leaves: list) -> list:
    """Writes one layer's arrays into a slot."""
    return [
        jax.lax.dynamic_update_slice(into, leaf[None, None], _at(slot, number, leaf.ndim)) for into, leaf in zip(ring, leaves, strict=True)
    ]


def _take(ring: list, slot, number) -> list:
    """One layer's arrays out of a slot.

    The barrier ties them to the turn: where a chunk has one layer, XLA would see that every turn reads the same, and do what follows
    from it before the loop, which is in every tick.
    """
    taken = [jax.lax.dynamic_slice(leaf, _at(slot, number, leaf.ndim - 2), (1, 1, *leaf.shape[2:]))[0, 0] for leaf in ring]
    return jax.lax.optimization_barrier((taken, number))[0]


def _at(slot, number, num_dims: int) -> tuple:
    return tuple(jnp.asarray(index, jnp.int32) for index in (slot, number, *[0] * num_dims))


def _added(sums: dict, grads: dict) -> dict:
    """sums + grads, where `grads` has some of the leaves only."""

    def one(path, total):
        return total + by_name[path].astype(total.dtype) if path in by_name else total

    by_name = by_path(grads)
    return map_with_path(one, sums)
