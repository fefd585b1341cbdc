"""The one file that calls `shard_map`: training, scoring, prefill and decoding as programs over the mesh.

Every function here builds a function of global arrays, to be called inside `jax.jit`. Inside `shard_map` each device sees its own
shard, differentiation happens there (never through it), and every collective goes through `core/collectives.py`, with what it sums and
why. `check_vma` is off: a missing reduction gives silently wrong gradients, so the tests take each one away and see the parity fail.

Parameters come in their storage sharding, gradients leave in it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtnlg import pipeline
from mtnlg.core import collectives, prng, schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.tree import by_path, cast, nested
from mtnlg.model import cache as caches
from mtnlg.model import count, int8, objective, transformer
from mtnlg.model.layers import num_input_dims
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


class Laid(NamedTuple):
    """How weights lie for generation, in the compute dtype, each whole but for its tensor shards.

    apart: a tree a layer, not a stack, and kernels, with that of the head, transposed; int8: the kernels of the blocks in eight bits.
    """

    apart: bool = False
    int8: bool = False


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
            return transformer.own_groups(self.config.model, params, shard), {"dtype": self.dtype}
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


def score(config: schema.Config, mesh: Mesh, laid: Laid | None = None):
    """(params, batch) -> (negative log-likelihood [B, L] in nats, whether the target was the likeliest token [B, L]).

    Both in the sequences' own order, on all devices along `pipe` and `context`. laid: how params lie for generation; None: as stored.
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
        params = weights.for_step(shards) if laid is None else shards
        found = (piped if config.mesh.pipe > 1 else whole)(params, batch)
        return tuple(context.in_order(context.all_places(x, 1, "scores, of all places"), 1) for x in found)

    stored = weights.storage if laid is None else laid_specs(config, laid)
    return _over(mesh, (stored, {name: BATCH for name in BATCH_FIELDS}), (SCORES, SCORES))(local)


def pooled(config: schema.Config, mesh: Mesh, laid: Laid | None = None):
    """(params, batch) -> the hidden states after the final norm, each times its weight, summed over every row: [B, D]. No stages.

    laid: as for `score`.
    """
    weights, shard, context = Weights(config), TensorShard(config.mesh.tensor, config.mesh.sequence_parallel), context_shard(config)

    def local(shards, batch):
        params, gathering = weights.for_forward(weights.for_step(shards) if laid is None else shards, shard)
        x_BLD, _ = transformer.hidden(config.model, params, batch, shard=shard, context=context, **gathering)
        sums_BD = objective.weighted_sum(x_BLD, shard.own_places(batch["weights"], 1))
        places = ("context", "tensor") if shard.shards_sequence else ("context",)
        return collectives.all_reduce(sums_BD, places, "hidden states, over the places of a text")

    stored = weights.storage if laid is None else laid_specs(config, laid)
    return _over(mesh, (stored, {name: BATCH for name in BATCH_FIELDS}), P(SAMPLE_AXES, None))(local)


def compute_params(config: schema.Config, mesh: Mesh):
    """(params) -> the parameters in the compute dtype, each whole but for the tensor shards: what prefill and decoding take."""
    weights = Weights(config)

    def local(shards):
        return zero.gather(cast(shards, weights.dtype), weights.dims)

    return _over(mesh, (weights.storage,), weights.compute)(local)


def laid_specs(config: schema.Config, laid: Laid) -> dict:
    """PartitionSpecs of the parameters as `laid` says. No pipeline stages."""
    whole = Weights(config).compute

    def laid_spec(path: str, stacked: P):
        (_, *spec), num_in = stacked, num_input_dims(path)
        put = lambda spec: P(*spec[num_in:], *spec[:num_in]) if laid.apart else P(None, *spec)  # noqa: E731
        return int8.Int8(put(spec), put([None] * num_in + spec[num_in:])) if laid.int8 and num_in else put(spec)

    layer = nested({laid_path(laid, path): laid_spec(path, spec) for path, spec in by_path(whole["blocks"], is_leaf=is_spec).items()})
    if laid.apart and "head" in whole:
        whole["head"] = {"weight": P(*reversed(whole["head"]["kernel"]))}
    return {**whole, "blocks": (layer,) * config.model.num_layers if laid.apart else layer}


def laid_path(laid: Laid, path: str) -> str:
    """Where a parameter of the blocks lies: transposed kernels have another name."""
    return path.removesuffix("kernel") + "weight" if laid.apart and path.endswith("/kernel") else path


def is_spec(leaf) -> bool:
    return isinstance(leaf, P)


CACHE = P(None, SAMPLE_AXES, "tensor")  # keys and values [N, B, G, S, K]


def read(config: schema.Config, mesh: Mesh, laid: Laid, one_row: bool = False):
    """(params, tokens [B, L], positions [B, L], row [R], places [B, P], cache) -> (logits [B, P, V] everywhere, cache).

    Reads L more tokens of every row, or, with `one_row`, in each group of devices with other samples those of the one of its rows that
    `row` says: B is R, the number of groups, then. places: which of the L are told of. positions: as for `transformer.hidden_cached`.
    V: with padding. params lie as `laid` says: they are cast, gathered and laid once for a whole generation, not for every token.
    """
    model, shard, dtype = config.model, TensorShard(config.mesh.tensor), jnp.dtype(config.train.compute_dtype)

    def local(params, tokens_BL, positions_BL, row_R, places_BP, cache):
        params = transformer.own_groups(model, params, shard)
        row = row_R[0] if one_row else None
        x_BLD, cache = transformer.hidden_cached(model, params, tokens_BL, positions_BL, row, cache, dtype, shard)
        x_BPD = jnp.take_along_axis(x_BLD, places_BP[..., None], axis=1)
        x_TD = x_BPD.reshape(-1, x_BPD.shape[-1])
        logits_TV = transformer.few_logits(model, params, x_TD, laid.apart)
        # Sampling looks at whole rows; that all devices draw all rows costs nothing that shows, and needs no other collective.
        logits_TV = collectives.all_gather(logits_TV, "tensor", 1, "logits, of the whole vocabulary")
        logits_BPV = logits_TV.reshape(*places_BP.shape, -1)
        for axis in reversed(SAMPLE_AXES):
            logits_BPV = collectives.all_gather(logits_BPV, axis, 0, "logits, of all rows")
        return logits_BPV, cache

    return _over(mesh, (laid_specs(config, laid), ROWS, ROWS, ROWS, ROWS, CACHE), (P(), CACHE))(local)


def copy_prefix(mesh: Mesh):
    """(cache, source [R], target [R], num_blocks [R]) -> cache: `cache.copy_prefix` between rows of each group of devices."""

    def local(cache, source_R, target_R, num_blocks_R):
        return caches.copy_prefix(cache, source_R[0], target_R[0], num_blocks_R[0])

    return _over(mesh, (CACHE, ROWS, ROWS, ROWS), CACHE)(local)


def on_each(mesh: Mesh, in_specs, function):
    """(tree) -> [devices, ...], in the order of the mesh: what `function` makes on each device of its own shards. Nothing is sent."""
    return _over(mesh, (in_specs,), P(mesh.axis_names))(lambda tree: function(tree)[None])
