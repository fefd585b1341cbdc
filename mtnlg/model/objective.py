"""From the residual stream of a microbatch to its loss, to the score of every token, or to one vector for a row."""

import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.core.collectives import TensorShard
from mtnlg.model import loss, transformer

HEAD = "head, into the rows of the vocabulary"


def loss_sum(config: schema.Config, params: dict, x_BLD, batch: dict, shard: TensorShard):
    """The sum of weighted losses, a scalar; x after the final norm."""
    x_BLD = shard.enter(x_BLD, HEAD)
    return loss.loss_sum(
        x_BLD.reshape(-1, config.model.d_model),
        transformer.head_kernel(config.model, params),
        batch["targets"].reshape(-1),
        batch["weights"].reshape(-1),
        config.model.vocab_size,
        config.train.loss_chunk_tokens,
        shard,
    )


def scores(config: schema.Config, params: dict, x_BLD, batch: dict, shard: TensorShard):
    """(negative log-likelihood [B, L] in nats, whether the target was the likeliest token [B, L]); x after the final norm."""
    x_BLD = shard.enter(x_BLD, HEAD)
    nll_T, greedy_T = loss.token_losses(
        x_BLD.reshape(-1, config.model.d_model),
        transformer.head_kernel(config.model, params),
        batch["targets"].reshape(-1),
        vocab_size=config.model.vocab_size,
        chunk_tokens=config.train.loss_chunk_tokens,
        shard=shard,
    )
    return nll_T.reshape(batch["tokens"].shape), greedy_T.reshape(batch["tokens"].shape)


def weighted_sum(x_BLD, weights_BL):
    """[B, D] in at least float32: the sum over L."""
    dtype = jnp.promote_types(x_BLD.dtype, jnp.float32)
    return jnp.einsum("bld,bl->bd", x_BLD.astype(dtype), weights_BL.astype(dtype))


def weight_sum(batch: dict, like):
    """The sum of the weights, in the dtype of `like`."""
    return jnp.sum(batch["weights"].astype(like.dtype))
