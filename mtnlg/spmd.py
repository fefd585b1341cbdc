"""The one file that calls `shard_map`: training, scoring, prefill and decoding as programs over the mesh.

Every function here builds a function of global arrays, to be called inside `jax.jit`. Inside `shard_map` each device sees its own
shard, differentiation happens there (never through it), and every collective is written out with what it sums and why.
`check_vma` is off: a missing reduction gives silently wrong gradients. On the one device of this version every reduction is over axes
of size one; the mesh issue brings a negative control for each.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtnlg.core import prng, schema
from mtnlg.model import count, loss, transformer
from mtnlg.model.cache import Cache
from mtnlg.parallel import specs
from mtnlg.parallel.mesh import BATCH

SAMPLE_AXES = ("replica", "data")  # axes whose devices hold different samples and the same parameters
BATCH_FIELDS = ("tokens", "targets", "positions", "segment_ids", "weights")


def _over(mesh: Mesh, config: schema.Config, in_specs, out_specs):
    """`shard_map` of a function whose first argument is the parameters. float32 means float32, on devices with faster ways too."""
    compute = specs.specs(specs.COMPUTE, count.abstract_params(config.model))
    over = functools.partial(jax.shard_map, mesh=mesh, in_specs=(compute, *in_specs), out_specs=out_specs, check_vma=False)

    def exact(function):
        @functools.wraps(function)
        def run(*arguments):
            with jax.default_matmul_precision("float32"):
                return function(*arguments)

        return over(run)

    return exact


def loss_and_grad(config: schema.Config, mesh: Mesh):
    """(params, batch, num_microbatches, step) -> sums {'loss', 'weight', 'grads', 'rms_N'}, all reduced over the mesh.

    params: master copy; batch: fields [M, B, L], of which the first `num_microbatches` (traced: one program for a whole batch
    ramp) are used; step: traced, names the dropout masks. `loss` is the sum of weighted losses, `grads` the gradient of that sum
    in the parameters' dtype; the caller divides by `weight`, once. `rms_N` [N]: scale of activations, the mean over devices,
    summed over microbatches.
    """
    model, train = config.model, config.train
    compute_dtype = jnp.dtype(train.compute_dtype)
    drops = model.dropout_hidden > 0 or model.dropout_attention > 0

    def microbatch_loss(params, batch, first_sample, step):
        rows, length = batch["tokens"].shape
        dropout = None
        if drops:
            shard = jax.lax.axis_index(SAMPLE_AXES)
            samples_B = first_sample + shard * rows + jnp.arange(rows)
            dropout = prng.Dropout(prng.key(config.seed, prng.DROPOUT, step), samples_B, jnp.arange(length))
        cast_params = transformer.compute_copy(params, compute_dtype)
        settings = {"recompute": train.recompute, "unroll": train.unroll_layers, "dropout": dropout}
        x_BLD, rms_N = transformer.hidden(model, cast_params, batch, **settings)
        total = loss.loss_sum(
            x_BLD.reshape(-1, model.d_model),
            transformer.head_kernel(model, cast_params),
            batch["targets"].reshape(-1),
            batch["weights"].reshape(-1),
            model.vocab_size,
            train.loss_chunk_tokens,
        )
        return total, rms_N

    def local(params, batch, num_microbatches, step):
        num_shards = mesh.shape["replica"] * mesh.shape["data"]
        samples_in_microbatch = batch["tokens"].shape[1] * num_shards

        def one(m):
            fields = {name: jax.lax.dynamic_index_in_dim(batch[name], m, keepdims=False) for name in BATCH_FIELDS}
            differentiate = jax.value_and_grad(microbatch_loss, has_aux=True)
            (total, rms_N), grads = differentiate(params, fields, m * samples_in_microbatch, step)
            return {"loss": total, "weight": jnp.sum(fields["weights"]), "grads": grads, "rms_N": rms_N / num_shards}

        if batch["tokens"].shape[0] == 1:
            sums = one(0)
        else:
            nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(one, 0))
            sums = jax.lax.fori_loop(0, num_microbatches, lambda m, sums: jax.tree.map(jnp.add, sums, one(m)), nothing)
        # Every device holds the sums over its own samples; the step's are theirs together. Once a step, after accumulation.
        return jax.lax.psum(sums, SAMPLE_AXES)

    microbatches = P(None, *BATCH)
    out_specs = {"loss": P(), "weight": P(), "rms_N": P(), "grads": specs.specs(specs.COMPUTE, count.abstract_params(model))}
    return _over(mesh, config, ({name: microbatches for name in BATCH_FIELDS}, P(), P()), out_specs)(local)


def score(config: schema.Config, mesh: Mesh):
    """(params, batch) -> (negative log-likelihood [B, L] in nats, whether the target was the likeliest token [B, L])."""
    model, train = config.model, config.train

    def local(params, batch):
        cast_params = transformer.compute_copy(params, jnp.dtype(train.compute_dtype))
        x_BLD, _ = transformer.hidden(model, cast_params, batch)
        nll_T, greedy_T = loss.token_losses(
            x_BLD.reshape(-1, model.d_model),
            transformer.head_kernel(model, cast_params),
            batch["targets"].reshape(-1),
            vocab_size=model.vocab_size,
            chunk_tokens=train.loss_chunk_tokens,
        )
        return nll_T.reshape(batch["tokens"].shape), greedy_T.reshape(batch["tokens"].shape)

    return _over(mesh, config, ({name: BATCH for name in BATCH_FIELDS},), (BATCH, BATCH))(local)


ROWS = P(SAMPLE_AXES)
CACHE = Cache(P(None, SAMPLE_AXES, None, "tensor"), P(None, SAMPLE_AXES, None, "tensor"), ROWS, ROWS)


def prefill(config: schema.Config, mesh: Mesh):
    """(params, tokens [B, L], positions, segment_ids, slots, cache) -> (logits of each row's last token [B, V], cache).

    A row's last token is the one with the highest position in segment 1; padding has segment 0 and a slot beyond the cache.
    params are in the compute dtype already: they are cast once for a whole generation, not for every token.
    """
    model = config.model

    def local(params, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache):
        x_BLD, cache = transformer.hidden_cached(model, params, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache)
        last_B = jnp.argmax(jnp.where(segment_ids_BL == 1, positions_BL, -1), axis=1)
        x_BD = jnp.take_along_axis(x_BLD, last_B[:, None, None], axis=1)[:, 0]
        return loss.chunk_logits(x_BD, transformer.head_kernel(model, params), model.vocab_size), cache

    return _over(mesh, config, (ROWS, ROWS, ROWS, ROWS, CACHE), (ROWS, CACHE))(local)


def decode_step(config: schema.Config, mesh: Mesh):
    """(params, tokens [B], positions [B], cache) -> (logits [B, V] of the next token, cache): one token for every row.

    A token lies in the slot of its position. The same program as prefill, with L = 1.
    """
    run = prefill(config, mesh)

    def step(params, tokens_B, positions_B, cache):
        positions_BL = positions_B[:, None]
        return run(params, tokens_B[:, None], positions_BL, jnp.ones_like(positions_BL), positions_BL, cache)

    return step
