"""Cross entropy over chunks of tokens: logits of a whole batch never exist, and the backward reuses the forward's softmax."""

import functools

import jax
import jax.numpy as jnp

from mtnlg.core.collectives import WHOLE, TensorShard


def chunk_logits(x_TD, head_VD, vocab_size: int, shard: TensorShard = WHOLE):
    """Logits [T, V] of this device's rows of the head, in at least float32; those of the padded vocabulary are the lowest number."""
    dtype = jnp.promote_types(x_TD.dtype, jnp.float32)
    logits_TV = jnp.einsum("td,vd->tv", x_TD, head_VD.astype(x_TD.dtype), preferred_element_type=dtype)
    if head_VD.shape[0] * shard.size == vocab_size:
        return logits_TV
    return jnp.where(_ids(head_VD, shard) < vocab_size, logits_TV, jnp.finfo(dtype).min)


def _ids(head_VD, shard: TensorShard):
    """The token ids [V] of this device's rows."""
    return shard.rank() * head_VD.shape[0] + jnp.arange(head_VD.shape[0])


def _negative_log_likelihood(logits_TV, hit_TV, shard: TensorShard):
    """(nll [T], softmax [T, V]); hit marks the target, in the rows of the one device that has it."""
    top_T = shard.max(jnp.max(logits_TV, axis=-1), "largest logit of the whole vocabulary")
    exp_TV = jnp.exp(logits_TV - top_T[:, None])
    parts_2T = jnp.stack([jnp.sum(exp_TV, axis=-1), jnp.sum(jnp.where(hit_TV, logits_TV, 0), axis=-1)])
    sum_T, target_T = shard.sum(parts_2T, "sum of exponentials, and the target's logit, over the vocabulary")
    return jnp.log(sum_T) + top_T - target_T, exp_TV / sum_T[:, None]


def _chunks(chunk_tokens: int, *arrays):
    """Arrays [T, ...] as [T/C, C, ...], padded with zeros at the end (their weight is zero too)."""
    length = arrays[0].shape[0]
    size = min(chunk_tokens, length)
    pad = -length % size
    padded = [jnp.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1)) if pad else a for a in arrays]
    return [a.reshape(-1, size, *a.shape[1:]) for a in padded]


def token_losses(x_TD, head_VD, targets_T, *, vocab_size: int, chunk_tokens: int, shard: TensorShard = WHOLE):
    """(nll [T] in at least float32, whether the target is the likeliest token [T] bool); not differentiated."""
    ids_V = _ids(head_VD, shard)

    def one(chunk):
        x_CD, targets_C = chunk
        logits_CV = chunk_logits(x_CD, head_VD, vocab_size, shard)
        nll_C, _ = _negative_log_likelihood(logits_CV, ids_V == targets_C[:, None], shard)
        top_C = jnp.max(logits_CV, axis=-1)
        first_C = ids_V[jnp.argmax(logits_CV, axis=-1)]  # of several likeliest the first counts, on this device and over all
        whole_C = shard.max(top_C, "largest logit of the whole vocabulary")
        likeliest_C = -shard.max(jnp.where(top_C == whole_C, -first_C, -vocab_size), "first of the likeliest tokens")
        return nll_C, likeliest_C == targets_C

    nll, greedy = jax.lax.map(one, tuple(_chunks(chunk_tokens, x_TD, targets_T)))
    return nll.reshape(-1)[: x_TD.shape[0]], greedy.reshape(-1)[: x_TD.shape[0]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def loss_sum(x_TD, head_VD, targets_T, weights_T, vocab_size: int, chunk_tokens: int, shard: TensorShard = WHOLE):
    """Sum of weights x negative log-likelihood, a scalar in at least float32.

    x [T, D] after the final norm, in the compute dtype; head [V, D], whose gradient comes in its own, wider dtype; targets [T];
    weights [T], not differentiated. Of a head whose rows lie on several devices, the gradient of x is this device's part only:
    whoever spread x (`TensorShard.enter`) sums it. Only numbers per token cross between devices (Shoeybi et al. 2019, section 3).
    """
    nll_T, _ = token_losses(x_TD, head_VD, targets_T, vocab_size=vocab_size, chunk_tokens=chunk_tokens, shard=shard)
    return jnp.sum(nll_T * weights_T)


def _loss_forward(x_TD, head_VD, targets_T, weights_T, vocab_size, chunk_tokens, shard):
    """The loss and, while each chunk's softmax is at hand, the gradients of its sum; the backward only scales them."""
    dtype = jnp.promote_types(x_TD.dtype, jnp.float32)
    narrow_VD = head_VD.astype(x_TD.dtype)

    def one(carry, chunk):
        total, d_head_VD = carry
        x_CD, targets_C, weights_C = chunk
        hit_CV = _ids(head_VD, shard) == targets_C[:, None]
        nll_C, probs_CV = _negative_log_likelihood(chunk_logits(x_CD, narrow_VD, vocab_size, shard), hit_CV, shard)
        d_logits_CV = ((probs_CV - hit_CV) * weights_C[:, None].astype(dtype)).astype(x_TD.dtype)
        d_x_CD = d_logits_CV @ narrow_VD
        d_head_VD = d_head_VD + jnp.einsum("cv,cd->vd", d_logits_CV, x_CD, preferred_element_type=dtype)
        return (total + jnp.sum(nll_C * weights_C), d_head_VD), d_x_CD

    start = (jnp.zeros((), dtype), jnp.zeros(head_VD.shape, dtype))
    chunks = tuple(_chunks(chunk_tokens, x_TD, targets_T, weights_T))
    if chunks[0].shape[0] == 1:
        (total, d_head_VD), d_x = one(start, tuple(c[0] for c in chunks))
    else:
        (total, d_head_VD), d_x = jax.lax.scan(one, start, chunks)
    return total, (d_x.reshape(-1, x_TD.shape[1])[: x_TD.shape[0]], d_head_VD.astype(head_VD.dtype))


def _loss_backward(vocab_size, chunk_tokens, shard, saved, cotangent):
    d_x_TD, d_head_VD = saved
    return (d_x_TD * cotangent.astype(d_x_TD.dtype), d_head_VD * cotangent.astype(d_head_VD.dtype), None, None)


loss_sum.defvjp(_loss_forward, _loss_backward)
