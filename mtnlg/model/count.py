"""Parameters and floating point operations of a model, without allocating it."""

import functools
import math

import jax

from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.model import transformer


def abstract_params(model: schema.Model) -> dict:
    """The parameter tree as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))


def num_params(model: schema.Model) -> int:
    """Parameters, rows of vocabulary padding not counted."""
    shapes = by_path(abstract_params(model))
    padding = model.padded_vocab_size - model.vocab_size
    copies = 1 if model.tie_embeddings else 2
    return sum(math.prod(leaf.shape) for leaf in shapes.values()) - copies * padding * model.d_model


def flops_per_token(model: schema.Model) -> int:
    """Floating point operations of forward and backward for one token: 6 N + 12 L H Q T (Chowdhery et al. 2022, PaLM, appendix B).

    N: parameters without position rows (a lookup); L, H, Q, T: layers, heads, head width, sequence length. The embedding is
    counted once, as the head's matrix. Attention is counted whole, not its causal half; recomputation is not counted.
    """
    num_heads, _, head_dim = model.heads
    lookups = (model.seq_len + model.position_offset) * model.d_model if model.position == "learned" else 0
    lookups += 0 if model.tie_embeddings else model.vocab_size * model.d_model
    return 6 * (num_params(model) - lookups) + 12 * model.num_layers * num_heads * head_dim * model.seq_len
