"""Embedding, the stack of blocks, final norm and head: plain functions of nested dicts of arrays."""

import jax
import jax.numpy as jnp

from mtnlg.core import prng, schema
from mtnlg.core.errors import ConfigError
from mtnlg.core.prng import Dropout
from mtnlg.core.tree import map_with_path
from mtnlg.model import positions
from mtnlg.model.attention import Places
from mtnlg.model.block import whole_block
from mtnlg.model.cache import Cache, LayerCache, occupy
from mtnlg.model.layers import Norm


def init(model: schema.Model, key, dtype=jnp.float32) -> dict:
    """Fresh parameters, the tree of docs/design.md, blocks stacked on the first axis. A pure function of `key`.

    Raises ConfigError for float64 without JAX's 64-bit mode, which would make them float32.
    """
    if dtype == jnp.dtype("float64") and not jax.config.jax_enable_x64:
        raise ConfigError("weights in float64 need 64-bit mode", "train.param_dtype=float64", "JAX_ENABLE_X64=1 before the command")
    embedding_key, blocks_key, head_key = jax.random.split(key, 3)
    token_key, position_key = jax.random.split(embedding_key)

    def normal(at, *shape):
        return model.init_std * jax.random.normal(at, shape, dtype)

    embedding = {"tokens": normal(token_key, model.padded_vocab_size, model.d_model)}
    if model.position == "learned":
        embedding["positions"] = normal(position_key, model.seq_len + model.position_offset, model.d_model)

    x_BLD = jnp.zeros((1, 1, model.d_model), dtype)
    places = places_of(model, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32), dtype)
    blocks = jax.vmap(lambda k: whole_block(model).init(k, x_BLD, places)["params"])(jax.random.split(blocks_key, model.num_layers))
    params = {"embedding": embedding, "blocks": blocks, "final_norm": Norm(model).init(head_key, x_BLD)["params"]}
    if not model.tie_embeddings:
        params["head"] = {"kernel": normal(head_key, model.d_model, model.padded_vocab_size)}
    return params


def compute_copy(params: dict, dtype) -> dict:
    """The parameters as a forward takes them: kernels in the compute dtype; embedding, biases and norms as they are.

    Gradients of the latter are sums over every token, which must be summed in the wide dtype of the master copy.
    """
    return map_with_path(lambda path, leaf: leaf.astype(dtype) if is_block_kernel(path) else leaf, params)


def is_block_kernel(path: str) -> bool:
    return path.startswith("blocks/") and path.endswith("/kernel")


def compute_dtype(params: dict):
    """The dtype a forward with these parameters computes in: that of its matrices."""
    return params["blocks"]["mlp"]["up"]["kernel"].dtype


def places_of(model: schema.Model, positions_BL, segment_ids_BL, dtype) -> Places:
    """Where tokens stand; rotary tables, where the model has them, in at least float32."""
    rotary = None
    if model.position == "rope":
        rotary = positions.rotary_tables(model, positions_BL, jnp.promote_types(dtype, jnp.float32))
    return Places(positions_BL, segment_ids_BL, rotary)


def embed(model: schema.Model, embedding: dict, tokens_BL, positions_BL):
    """Token rows plus, for learned positions, position rows: [B, L, D] in the table's dtype. Ids and positions are in range by contract."""
    x_BLD = embedding["tokens"][tokens_BL]
    if model.position == "learned":
        x_BLD = x_BLD + embedding["positions"][positions_BL + model.position_offset]
    return x_BLD


def hidden(
    model: schema.Model, params: dict, batch: dict, *, recompute: str = "none", unroll: bool = False, dropout: Dropout | None = None
):
    """The residual stream after the final norm [B, L, D], and the root mean square of every block's output [N].

    params as `compute_copy` gives them; batch as in the batch contract; `dropout` None when not training.
    """
    dtype = compute_dtype(params)
    places = places_of(model, batch["positions"], batch["segment_ids"], dtype)
    x_BLD = embed(model, params["embedding"], batch["tokens"], batch["positions"]).astype(dtype)
    if dropout is not None:
        x_BLD = dropout.hidden(x_BLD, prng.EMBEDDING, model.dropout_hidden)
    block = whole_block(model, recompute_core=recompute == "selective")

    def one(x_BLD, layer_params, layer):
        at_layer = dropout.at_layer(layer) if dropout is not None else None
        y_BLD, _ = block.apply({"params": layer_params}, x_BLD, places, None, at_layer)
        return y_BLD

    if recompute == "full":
        one = jax.checkpoint(one)

    def body(x_BLD, inputs):
        y_BLD = one(x_BLD, *inputs)
        return y_BLD, jax.lax.stop_gradient(root_mean_square(y_BLD))

    x_BLD, rms_N = jax.lax.scan(body, x_BLD, (params["blocks"], jnp.arange(model.num_layers)), unroll=unroll)
    return final_norm(model, params, x_BLD), rms_N


def hidden_cached(model: schema.Model, params: dict, tokens_BL, positions_BL, segment_ids_BL, slots_BL, cache: Cache):
    """Reads L more tokens of each row into the cache's slots: ([B, L, D] after the final norm, the cache updated in place).

    The cache is the carry of the scan over layers; the same block as in training.
    """
    dtype = compute_dtype(params)
    places = places_of(model, positions_BL, segment_ids_BL, dtype)
    cache = occupy(cache, slots_BL, positions_BL, segment_ids_BL)
    block = whole_block(model)

    def body(carry, inputs):
        x_BLD, cache = carry
        layer_params, layer = inputs
        return block.apply({"params": layer_params}, x_BLD, places, LayerCache(cache, layer, slots_BL)), None

    start = (embed(model, params["embedding"], tokens_BL, positions_BL).astype(dtype), cache)
    (x_BLD, cache), _ = jax.lax.scan(body, start, (params["blocks"], jnp.arange(model.num_layers)))
    return final_norm(model, params, x_BLD), cache


def final_norm(model: schema.Model, params: dict, x_BLD):
    return Norm(model).apply({"params": params["final_norm"]}, x_BLD)


def head_kernel(model: schema.Model, params: dict):
    """[V, D]: the embedding itself when tied, else the head's kernel transposed."""
    return params["embedding"]["tokens"] if model.tie_embeddings else params["head"]["kernel"].T


def root_mean_square(x):
    """sqrt(mean(x²)) in at least float32: the scale of activations, for the metrics."""
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))))
