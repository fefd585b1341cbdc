"""The one file that calls `shard_map`: training, scoring, prefill and decoding as programs over the mesh.

Every function here builds a function of global arrays, to be called inside `jax.jit`. Inside `shard_map` each device sees its own
shard, differentiation happens there (never through it), and every collective goes through `core/collectives.py`, with what it sums and
why. `check_vma` is off: a missing reduction gives silently wrong gradients, so the tests take each one away and see the parity fail.

Parameters come in their storage sharding, gradients leave in it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtnlg.core import collectives, prng, schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.tree import cast
from mtnlg.model import count, loss, transformer
from mtnlg.model.cache import Cache
from mtnlg.parallel import specs, zero
from mtnlg.parallel.mesh import BATCH

SAMPLE_AXES = ("replica", "data")  # axes whose devices hold different samples
TOKEN_AXES = (*SAMPLE_AXES, "context")  # axes whose devices hold different tokens
ROWS = P(SAMPLE_AXES)
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
        self.dims = specs.data_dims(config, self.shapes)
        self.dtype = jnp.dtype(config.train.compute_dtype)
        self.sum_dtype = None if config.train.reduce_dtype == "float32" else jnp.dtype(config.train.reduce_dtype)
        self.storage = specs.specs(specs.storage_table(config), self.shapes)
        self.compute = specs.specs(specs.compute_table(config), self.shapes)

    def for_step(self, shards: dict) -> dict:
        """What is gathered once a step: whole compute copies, cast before they travel. With ZeRO 3, nothing yet."""
        if self.config.mesh.zero == 3:
            return shards
        return zero.gather(transformer.compute_copy(shards, self.dtype), self.dims)

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

    def after_step(self, grads: dict) -> dict:
        """The sums over all devices, in storage sharding."""
        if self.config.mesh.zero == 1:
            grads = zero.scatter(grads, self.dims, self.sum_dtype)
        return zero.sum_rest(grads, self.dims, functools.partial(specs.is_partial, self.config), self.sum_dtype)


def loss_and_grad(config: schema.Config, mesh: Mesh):
    """(params, batch, num_microbatches, step) -> sums {'loss', 'weight', 'grads', 'squares_N'}, all reduced over the mesh.

    params: master copy; batch: fields [M, B, L], of which the first `num_microbatches` (traced: one program for a whole batch
    ramp) are used; step: traced, names the dropout masks. `loss` is the sum of weighted losses, `grads` the gradient of that sum
    in the parameters' dtype and storage sharding; the caller divides by `weight`, once. `squares_N` [N]: mean squares of the
    activations, summed over microbatches.
    """
    model, train = config.model, config.train
    weights, shard, context = Weights(config), TensorShard(config.mesh.tensor, config.mesh.sequence_parallel), context_shard(config)
    drops = model.dropout_hidden > 0 or model.dropout_attention > 0

    def microbatch_loss(params, batch, first_sample, step):
        rows, length = batch["tokens"].shape
        dropout = None
        if drops:
            samples_B = first_sample + jax.lax.axis_index(SAMPLE_AXES) * rows + jnp.arange(rows)
            places_L, keys_S = context.own_places(length * context.size), context.key_places(length * context.size)
            key = prng.key(config.seed, prng.DROPOUT, step)
            dropout = prng.Dropout(key, samples_B, shard.own_places(places_L, 0), places_L, keys_S)
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
        x_BLD = shard.enter(x_BLD, "head, into the rows of the vocabulary")
        total = loss.loss_sum(
            x_BLD.reshape(-1, model.d_model),
            transformer.head_kernel(model, params),
            batch["targets"].reshape(-1),
            batch["weights"].reshape(-1),
            model.vocab_size,
            train.loss_chunk_tokens,
            shard,
        )
        return total, squares_N

    def local(shards, batch, num_microbatches, step):
        num_shards = mesh.shape["replica"] * mesh.shape["data"]
        samples_in_microbatch = batch["tokens"].shape[1] * num_shards
        params = weights.for_step(shards)

        def one(m):
            fields = {name: jax.lax.dynamic_index_in_dim(batch[name], m, keepdims=False) for name in BATCH_FIELDS}
            differentiate = jax.value_and_grad(microbatch_loss, has_aux=True)
            (total, squares_N), grads = differentiate(params, fields, m * samples_in_microbatch, step)
            grads = weights.after_microbatch(grads)
            return {"loss": total, "weight": jnp.sum(fields["weights"].astype(total.dtype)), "grads": grads, "squares_N": squares_N}

        if batch["tokens"].shape[0] == 1:
            sums = one(0)
        else:
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, 0))
            sums = jax.lax.fori_loop(0, num_microbatches, lambda m, sums: jax.tree.map(jnp.add, sums, one(m)), nothing)
        # Every device has read its own tokens; the step's sums are those of all of them. Once a step, after accumulation.
        for name in ("loss", "weight"):
            sums[name] = collectives.all_reduce(sums[name], TOKEN_AXES, f"{name}, over samples")
        places = ("tensor",) if shard.shards_sequence else ()
        squares_N = collectives.all_reduce(sums["squares_N"], (*TOKEN_AXES, *places), "mean squares, over samples and places")
        num_parts = num_shards * context.size * (shard.size if places else 1)
        return {**sums, "squares_N": squares_N / num_parts, "grads": weights.after_step(sums["grads"])}

    microbatches = P(None, *BATCH)
    out_specs = {"loss": P(), "weight": P(), "squares_N": P(), "grads": weights.storage}
    return _over(mesh, (weights.storage, {name: microbatches for name in BATCH_FIELDS}, P(), P()), out_specs)(local)


def score(config: schema.Config, mesh: Mesh):
    """(params, batch) -> (negative log-likelihood [B, L] in nats, whether the target was the likeliest token [B, L]).

    Both in the sequences' own order, on all devices along `context`.
    """
    model, train = config.model, config.train
    weights, shard, context = Weights(config), TensorShard(config.mesh.tensor, config.mesh.sequence_parallel), context_shard(config)

    def local(shards, batch):
        params, gathering = weights.for_forward(weights.for_step(shards), shard)
        x_BLD, _ = transformer.hidden(model, params, batch, shard=shard, context=context, **gathering)
        x_BLD = shard.enter(x_BLD, "head, into the rows of the vocabulary")
        nll_T, greedy_T = loss.token_losses(
            x_BLD.reshape(-1, model.d_model),
            transformer.head_kernel(model, params),
            batch["targets"].reshape(-1),
            vocab_size=model.vocab_size,
            chunk_tokens=train.loss_chunk_tokens,
            shard=shard,
        )
        shape = batch["tokens"].shape
        return tuple(context.in_order(context.all_places(x.reshape(shape), 1, "scores, of all places"), 1) for x in (nll_T, greedy_T))

    return _over(mesh, (weights.storage, {name: BATCH for name in BATCH_FIELDS}), (ROWS, ROWS))(local)


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
