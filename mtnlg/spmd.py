"""The one file that calls `shard_map`: training, scoring, prefill and decoding as programs over the mesh.

Every function here builds a function of global arrays, to be called inside `jax.jit`. Inside `shard_map` each device sees its own
shard, differentiation happens there (never through it), and every collective goes through `core/collectives.py`, with what it sums and
why. `check_vma` is off: a missing reduction gives silently wrong gradients, so the tests take each one away and see the parity fail.

Parameters come in their storage sharding, gradients leave in it.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtnlg import pipeline
from mtnlg.core import collectives, prng, schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.tree import cast
from mtnlg.model import count, loss, objective, transformer
from mtnlg.model.cache import Cache
from mtnlg.parallel import arrangement, specs, timetable, zero
from mtnlg.parallel.mesh import BATCH

SAMPLE_AXES = ("replica", "data")  # axes whose devices hold different samples
TOKEN_AXES = (*SAMPLE_AXES, "context")  # axes whose devices hold different tokens
ROWS = P(SAMPLE_AXES)
SCORES = P(SAMPLE_AXES, None)  # of [B, L], every sequence whole
MICROBATCHES = "microbatches"  # the name of the loop over them in the program
BATCH_FIELDS = ("tokens", "targets", "positions", "segment_ids", "weights")


def _over(mesh: Mesh, in_specs, out_specs):
    """`shard_map`. float32 means float32, on devices with faster ways too."""
    over = functools.partial(jax.shard_map, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def exact(function):
        @functools.wraps(function)
        def run(*arguments):
            with jax.default_matmul_precision("float32"):
                return function(*arguments)

        return over(run)

    return exact


def context_shard(config: schema.Config) -> ContextShard:
    """A permute within a branch that only one stage takes would wait for the others for ever: with stages, keys are gathered."""
    return ContextShard(config.mesh.context, ring=config.mesh.pipe == 1)


class Weights:
    """How one device comes from its stored shards to the weights that it computes with, and from their gradients back."""

    def __init__(self, config: schema.Config):
        self.config, self.shapes = config, count.abstract_params(config.model)
        self.dims, self.pipe_dims = (specs.dims_along(axis, config, self.shapes) for axis in ("data", "pipe"))
        self.dtype = jnp.dtype(config.train.compute_dtype)
        self.sum_dtype = None if config.train.reduce_dtype == "float32" else jnp.dtype(config.train.reduce_dtype)
        self.storage = specs.specs(specs.storage_table(config), self.shapes)
        self.compute = specs.specs(specs.compute_table(config), self.shapes)

    def for_step(self, shards: dict) -> dict:
        """What is gathered once a step: whole compute copies, cast before they travel. With ZeRO 3, nothing yet."""
        if self.config.mesh.zero == 3:
            return shards
        gathered = zero.gather(transformer.compute_copy(shards, self.dtype), self.dims)
        return zero.gather(gathered, self.pipe_dims, "pipe")

    def for_forward(self, params: dict, shard: TensorShard) -> tuple[dict, dict]:
        """(the parameters of a forward, the arguments that `transformer.hidden` needs beside them), differentiable."""
        if self.config.mesh.zero < 3:
            return transformer.own_groups(self.config.model, params, shard), {}
        outer = {name: part for name, part in params.items() if name != "blocks"}
        outer = zero.gather_now(outer, self.dims, lambda _, leaf: leaf.dtype, self.sum_dtype)
        own = transformer.own_groups(self.config.model, {**outer, "blocks": params["blocks"]}, shard)

        def gather_block(shards):
            dtype_of = lambda path, leaf: self.dtype if transformer.is_block_kernel(path) else leaf.dtype  # noqa: E731
            return zero.gather_now(shards, self.dims, dtype_of, self.sum_dtype, prefix="blocks/", stacked=True)

        return own, {"gather_block": gather_block, "dtype": self.dtype}

    def after_microbatch(self, grads: dict) -> dict:
        """What is accumulated: in the parameters' dtype; with ZeRO 2 only this device's shards."""
        grads = cast(grads, self.config.train.param_dtype)
        return zero.scatter(grads, self.dims, self.sum_dtype) if self.config.mesh.zero == 2 else grads

    def after_layer(self, kernels: dict) -> dict:
        """`after_microbatch` of the kernels of one layer, by their path in it."""
        grads = cast(kernels, self.config.train.param_dtype)
        scattered = functools.partial(zero.scatter, prefix="blocks/", stacked=True)
        return scattered(grads, self.dims, self.sum_dtype) if self.config.mesh.zero == 2 else grads

    def after_step(self, grads: dict) -> dict:
        """The sums over all devices, in storage sharding."""
        if self.config.mesh.zero == 1:
            grads = zero.scatter(grads, self.dims, self.sum_dtype)
        grads = zero.sum_stages(grads, self.pipe_dims)
        return zero.sum_rest(grads, self.dims, functools.partial(specs.is_partial, self.config), self.sum_dtype)


def loss_and_grad(config: schema.Config, mesh: Mesh):
    """(params, batch, num_microbatches, step, timetable) -> sums {'loss', 'weight', 'grads', 'squares_N'}, all reduced over the mesh.

    params: master copy; batch: fields [M, B, L], of which the first `num_microbatches` (traced: one program for a whole batch
    ramp) are used; step: traced, names the dropout masks; timetable: of as many microbatches (parallel/timetable.py), None without a
    pipeline. `loss` is the sum of weighted losses, `grads` the gradient of that sum in the parameters' dtype and storage sharding; the
    caller divides by `weight`, once. `squares_N` [N]: mean squares of the activations, summed over microbatches.
    """
    model, train = config.model, config.train
    weights, shard, context = Weights(config), TensorShard(config.mesh.tensor, config.mesh.sequence_parallel), context_shard(config)
    with_pipeline = config.mesh.pipe > 1

    def dropout_of(step, m, rows, length):
        """The masks of microbatch m, of which this device has `rows` and `length` places."""
        if not (model.dropout_hidden > 0 or model.dropout_attention > 0):
            return None
        samples_B = (m * collectives.degree(SAMPLE_AXES) + jax.lax.axis_index(SAMPLE_AXES)) * rows + jnp.arange(rows)
        places_L, keys_S = context.own_places(length * context.size), context.key_places(length * context.size)
        key = prng.key(config.seed, prng.DROPOUT, step)
        return prng.Dropout(key, samples_B, shard.own_places(places_L, 0), places_L, keys_S)

    def microbatch_loss(params, batch, dropout):
        params, gathering = weights.for_forward(params, shard)
        settings = {
            "recompute": train.recompute,
            "unroll": train.unroll_layers,
            "dropout": dropout,
            "shard": shard,
            "context": context,
            **gathering,
        }
        x_BLD, squares_N = transformer.hidden(model, params, batch, **settings)
        return objective.loss_sum(config, params, x_BLD, batch, shard), squares_N

    def accumulated(params, batch, num_microbatches, masks):
        """The sums of this device, one microbatch after the other."""

        def one(m):
            fields = {name: jax.lax.dynamic_index_in_dim(batch[name], m, keepdims=False) for name in BATCH_FIELDS}
            differentiate = jax.value_and_grad(microbatch_loss, has_aux=True)
            (total, squares_N), grads = differentiate(params, fields, masks(m))
            weight = objective.weight_sum(fields, total)
            return {"loss": total, "weight": weight, "grads": weights.after_microbatch(grads), "squares_N": squares_N}

        if batch["tokens"].shape[0] == 1:
            return one(0)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, 0))
        with jax.named_scope(MICROBATCHES):
            return jax.lax.fori_loop(0, num_microbatches, lambda m, sums: jax.tree.map(jnp.add, sums, one(m)), nothing)

    def piped(params, batch, table, masks):
        """The sums of this stage, as the timetable says."""
        stage = pipeline.Stage(config, shard, context, transformer.own_groups(model, params, shard), batch, masks)
        own = {name: a[:, 0] if name in timetable.COLUMNS else a for name, a in table.items()}
        sums = pipeline.loss_and_grad(stage, own, timetable.sizes(config), weights.after_layer, weights.after_microbatch)
        return sums | {"grads": transformer.return_groups(model, sums["grads"], shard)}

    def local(shards, batch, num_microbatches, step, table):
        params, (rows, length) = weights.for_step(shards), batch["tokens"].shape[1:]
        masks = functools.partial(dropout_of, step, rows=rows, length=length)
        sums = piped(params, batch, table, masks) if with_pipeline else accumulated(params, batch, num_microbatches, masks)
        # Every device has read its own tokens, or worked on its own stage; the step's sums are those of all. Once a step.
        for name in ("loss", "weight"):
            sums[name] = collectives.all_reduce(sums[name], ("pipe", *TOKEN_AXES), f"{name}, over stages and tokens")
        places = ("tensor",) if shard.shards_sequence else ()
        squares_N = collectives.all_reduce(sums["squares_N"], (*TOKEN_AXES, *places), "mean squares, over tokens")
        squares_N = collectives.all_gather(squares_N, "pipe", 0, "mean squares, of all stages")
        num_parts = collectives.degree((*TOKEN_AXES, *places))
        squares_N = arrangement.restore_order(config, "blocks/", squares_N) / num_parts
        return {**sums, "squares_N": squares_N, "grads": weights.after_step(sums["grads"])}

    microbatches = P(None, *BATCH)
    in_specs = (weights.storage, {name: microbatches for name in BATCH_FIELDS}, P(), P(), timetable.SPECS if with_pipeline else None)
    out_specs = {"loss": P(), "weight": P(), "squares_N": P(), "grads": weights.storage}
    over_mesh = _over(mesh, in_specs, out_specs)(local)
    return lambda params, batch, num_microbatches, step, table=None: over_mesh(params, batch, num_microbatches, step, table)


def score(config: schema.Config, mesh: Mesh):
    """(params, batch) -> (negative log-likelihood [B, L] in nats, whether the target was the likeliest token [B, L]).

    Both in the sequences' own order, on all devices along `pipe` and `context`.
    """
    model = config.model
    weights, shard, context = Weights(config), TensorShard(config.mesh.tensor, config.mesh.sequence_parallel), context_shard(config)

    def whole(params, batch):
        params, gathering = weights.for_forward(params, shard)
        x_BLD, _ = transformer.hidden(model, params, batch, shard=shard, context=context, **gathering)
        return objective.scores(config, params, x_BLD, batch, shard)

    def piped(params, batch):
        """As many rows at once as in training, where these divide by them."""
        rows, length = batch["tokens"].shape
        at_once = math.gcd(rows, config.microbatch_rows // config.mesh.num_sample_shards)
        table, sizes = timetable.forward_only(config, rows // at_once)
        here = jax.lax.axis_index("pipe")
        own = {name: jnp.asarray(a)[:, here] if name in timetable.COLUMNS else a for name, a in table.items()}
        microbatches = {name: field.reshape(-1, at_once, length) for name, field in batch.items()}
        stage = pipeline.Stage(config, shard, context, transformer.own_groups(model, params, shard), microbatches, lambda _: None)
        nll, greedy = (a.reshape(rows, length) for a in pipeline.scores(stage, own, sizes))
        sent = collectives.all_reduce(jnp.stack([nll, greedy.astype(nll.dtype)]), "pipe", "scores, from the last stage")
        return sent[0], sent[1].astype(bool)

    def local(shards, batch):
        found = (piped if config.mesh.pipe > 1 else whole)(weights.for_step(shards), batch)
        return tuple(context.in_order(context.all_places(x, 1, "scores, of all places"), 1) for x in found)

    return _over(mesh, (weights.storage, {name: BATCH for name in BATCH_FIELDS}), (SCORES, SCORES))(local)


def pooled(config: schema.Config, mesh: Mesh):
    """(params, batch) -> the hidden states after the final norm, each times its weight, summed over every row: [B, D]. No stages."""
    weights, shard, context = Weights(config), TensorShard(config.mesh.tensor, config.mesh.sequence_parallel), context_shard(config)

    def local(shards, batch):
        params, gathering = weights.for_forward(weights.for_step(shards), shard)
        x_BLD, _ = transformer.hidden(config.model, params, batch, shard=shard, context=context, **gathering)
        sums_BD = objective.weighted_sum(x_BLD, shard.own_places(batch["weights"], 1))
        places = ("context", "tensor") if shard.shards_sequence else ("context",)
        return collectives.all_reduce(sums_BD, places, "hidden states, over the places of a text")

    return _over(mesh, (weights.storage, {name: BATCH for name in BATCH_FIELDS}), P(SAMPLE_AXES, None))(local)


def compute_params(config: schema.Config, mesh: Mesh):
    """(params) -> the parameters in the compute dtype, each whole but for the tensor shards: what prefill and decoding take."""
    weights = Weights(config)

    def local(shards):
        return zero.gather(cast(shards, weights.dtype), weights.dims)

    return _over(mesh, (weights.storage,), weights.compute)(local)


CACHE = Cache(P(None, SAMPLE_AXES, None, "tensor"), P(None, SAMPLE_AXES, None, "tensor"), ROWS, ROWS)


def prefill(config: schema.Config, mesh: Mesh):
    """(params, tokens [B, L], positions, segment_ids, slots, cache) -> (logits of each row's last token [B, V] everywhere, cache).

    A row's last token is the one with the highest position in segment 1; padding has segment 0 and a slot beyond the cache.
    params as `compute_params` gives them: they are cast and gathered once for a whole generation, not for every token.
    """
    model, shard = config.model, TensorShard(config.mesh.tensor)

    def local(params, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache):
        params = transformer.own_groups(model, params, shard)
        x_BLD, cache = transformer.hidden_cached(model, params, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache, shard)
        last_B = jnp.argmax(jnp.where(segment_ids_BL == 1, positions_BL, -1), axis=1)
        x_BD = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)[:, 0]
        logits_BV = loss.chunk_logits(x_BD, transformer.head_kernel(model, params), model.vocab_size, shard)
        # Sampling looks at whole rows; that all devices draw all rows costs nothing that shows, and needs no other collective.
        logits_BV = collectives.all_gather(logits_BV, "tensor", 1, "logits, of the whole vocabulary")
        for axis in reversed(SAMPLE_AXES):
            logits_BV = collectives.all_gather(logits_BV, axis, 0, "logits, of all rows")
        return logits_BV, cache

    return _over(mesh, (Weights(config).compute, ROWS, ROWS, ROWS, ROWS, CACHE), (P(), CACHE))(local)


def decode_step(config: schema.Config, mesh: Mesh):
    """(params, tokens [B], positions [B], cache) -> (logits [B, V] of the next token, cache): one token for every row.

    A token lies in the slot of its position. The same program as prefill, with L = 1.
    """
    run = prefill(config, mesh)

    def step(params, tokens_B, positions_B, cache):
        positions_BL = positions_B[:, None]
        return run(params, tokens_B[:, None], positions_BL, jnp.ones_like(positions_BL), positions_BL, cache)

    return step
