"""Embedding, the stack of blocks, final norm and head: plain functions of nested dicts of arrays.

`shard` says which part of each layer this device has, `context` which part of each sequence; by default all of it.
Inside `shard_map` the arrays are this device's shards.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mtnlg.core import prng, schema
from mtnlg.core.collectives import WHOLE, WHOLE_SEQUENCE, ContextShard, TensorShard
from mtnlg.core.errors import ConfigError
from mtnlg.core.prng import Dropout
from mtnlg.core.tree import map_with_path
from mtnlg.model import positions
from mtnlg.model.attention import local_heads
from mtnlg.model.attention_core import Places
from mtnlg.model.block import Block
from mtnlg.model.cache import Cache, LayerCache
from mtnlg.model.int8 import wide_kernels
from mtnlg.model.layers import Norm, product_by_outputs

PLACES = "positions and segments, of all places"


def init(model: schema.Model, key, dtype=jnp.float32, layers: np.ndarray | None = None) -> dict:
    """Fresh parameters, the tree of docs/design.md, blocks stacked on the first axis. A pure function of `key`.

    layers: the layer at each place of the stack, zeros where it is -1; None: all layers in their order. Raises ConfigError for float64
    without JAX's 64-bit mode, which would make them float32.
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
    keys_N = jax.random.split(blocks_key, model.num_layers)
    keys_N = keys_N if layers is None else keys_N[jnp.maximum(layers, 0)]
    blocks = jax.vmap(lambda k: Block(model).init(k, x_BLD, places)["params"])(keys_N)
    if layers is not None:
        there = lambda leaf: jnp.asarray(layers >= 0).reshape(-1, *[1] * (leaf.ndim - 1))  # noqa: E731
        blocks = jax.tree.map(lambda leaf: jnp.where(there(leaf), leaf, jnp.zeros((), leaf.dtype)), blocks)
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


def places_of(model: schema.Model, positions_BL, segment_ids_BL, dtype, context: ContextShard = WHOLE_SEQUENCE) -> Places:
    """Where tokens and keys stand; rotary tables, where the model has them, in at least float32."""
    rotary = None
    if model.position == "rope":
        rotary = positions.rotary_tables(model, positions_BL, jnp.promote_types(dtype, jnp.float32))
    keys = context.all_places(jnp.stack([positions_BL, segment_ids_BL]), 2, PLACES)
    return Places(positions_BL, segment_ids_BL, rotary, *keys)


def embed(model: schema.Model, embedding: dict, tokens_BL, positions_BL, dtype, shard: TensorShard = WHOLE):
    """Token rows plus, for learned positions, position rows: [B, L, D] in `dtype`. Ids and positions are in range by contract.

    Where the vocabulary lies on several devices, each gives the rows that it has and zeros for the rest: their sum is exact in any
    dtype, so they travel in the narrow one.
    """
    table_VD = embedding["tokens"]
    rows_BL = tokens_BL - shard.rank() * table_VD.shape[0]
    x_BLD = table_VD[rows_BL] if shard.size == 1 else _rows_or_zeros(table_VD, rows_BL)
    x_BLD = shard.leave(x_BLD.astype(dtype), "embedding, out of the rows of the vocabulary")
    if model.position == "learned":
        x_BLD = (x_BLD + embedding["positions"][shard.own_places(positions_BL, 1) + model.position_offset]).astype(dtype)
    return x_BLD


def first_hidden(model: schema.Model, embedding: dict, batch: dict, dropout: Dropout | None, dtype, shard: TensorShard = WHOLE):
    """What the first block reads: the embedding of a batch, with dropout if there is one."""
    x_BLD = embed(model, embedding, batch["tokens"], batch["positions"], dtype, shard)
    return x_BLD if dropout is None else dropout.hidden(x_BLD, prng.EMBEDDING, model.dropout_hidden)


def _rows_or_zeros(table_VD, rows_BL):
    here_BL = (rows_BL >= 0) & (rows_BL < table_VD.shape[0])
    return jnp.where(here_BL[..., None], table_VD[jnp.where(here_BL, rows_BL, 0)], jnp.zeros((), table_VD.dtype))


def own_groups(model: schema.Model, params: dict, shard: TensorShard) -> dict:
    """The parameters with the one key/value head that this device's query heads read, where there are fewer than devices.

    All devices hold all of them then; the gradient of what this one does not read is zero.
    """
    groups = model.heads[1]
    if shard.size <= groups:
        return params
    own = shard.rank() // (shard.size // groups)

    def of(path, leaf):
        if "attention/key_value/" not in path:
            return leaf
        dim = 0 if "/weight" in path else leaf.ndim - 3  # of [G, 2, K, D], of [..., G, 2, K]
        return jax.lax.dynamic_slice_in_dim(leaf, own, local_heads(model, shard)[1], dim)

    return map_with_path(of, params)


def return_groups(model: schema.Model, grads: dict, shard: TensorShard) -> dict:
    """The transpose of `own_groups`: gradients of all key/value heads, zero but for those of this device."""
    groups = model.heads[1]
    if shard.size <= groups:
        return grads
    own = shard.rank() // (shard.size // groups)

    def of(path, leaf):
        if not path.startswith("blocks/attention/key_value/"):
            return leaf
        dim = leaf.ndim - 3  # of [..., G, 2, K]
        whole = jnp.zeros((*leaf.shape[:dim], groups, *leaf.shape[dim + 1 :]), leaf.dtype)
        return jax.lax.dynamic_update_slice_in_dim(whole, leaf, own, dim)

    return map_with_path(of, grads)


def saved(primitive, *_, **parameters) -> bool:
    """The policy of a block that gathers: everything is saved but what was gathered, which is gathered again for the backward.

    That holds for weights (ZeRO-3) and for activations of all places (Korthikanti et al. 2022, section 4.2.2). A reshape of a weight is
    as large as the weight; one of an activation costs nothing to make again.
    """
    if primitive.name == "custom_vjp_call":  # the pairs of core/collectives.py
        return not any(equation.primitive.name == "all_gather" for equation in parameters["call_jaxpr"].eqns)
    return primitive.name != "reshape"


def hidden(
    model: schema.Model,
    params: dict,
    batch: dict,
    *,
    recompute: str = "none",
    unroll: bool = False,
    dropout: Dropout | None = None,
    shard: TensorShard = WHOLE,
    context: ContextShard = WHOLE_SEQUENCE,
    dtype=None,
    gather_block: Callable[[dict], dict] | None = None,
):
    """The residual stream after the final norm [B, L, D], and the mean square of every block's output [N]: of this device's places.

    params as `compute_copy` gives them; batch as in the batch contract; `dropout` None when not training. gather_block makes one
    block's whole parameters, in the compute dtype `dtype`, of their shards (ZeRO-3), in the forward and again in the backward;
    None: they are whole.
    """
    dtype = dtype or compute_dtype(params)
    places = places_of(model, batch["positions"], batch["segment_ids"], dtype, context)
    x_BLD = first_hidden(model, params["embedding"], batch, dropout, dtype, shard)
    block = Block(model, shard, context, recompute_core=recompute == "selective")

    def one(x_BLD, layer_params, layer):
        at_layer = dropout.at_layer(layer) if dropout is not None else None
        layer_params = wide_kernels(layer_params, dtype) if gather_block is None else gather_block(layer_params)
        y_BLD, _ = block.apply({"params": layer_params}, x_BLD, places, None, at_layer)
        return y_BLD

    if recompute == "full":
        one = jax.checkpoint(one)
    elif gather_block is not None or shard.shards_sequence:
        one = jax.checkpoint(one, policy=saved)

    def body(x_BLD, inputs):
        y_BLD = one(x_BLD, *inputs)
        return y_BLD, jax.lax.stop_gradient(mean_square(y_BLD))

    x_BLD, squares_N = over_layers(body, x_BLD, params["blocks"], unroll)
    return final_norm(model, params, x_BLD), squares_N


def hidden_cached(model: schema.Model, params: dict, tokens_BL, positions_BL, row, cache: Cache, dtype, shard: TensorShard = WHOLE):
    """Reads L more tokens of each row into their slots: ([B, L, D] after the final norm, the cache updated in place).

    positions: consecutive in a row, or `cache.IDLE`. row: the one row of the cache that is read (B is 1 then), or None for all. The cache
    is the carry of the loop over layers; the same block as in training.
    """
    places = places_of(model, positions_BL, jnp.ones_like(positions_BL), dtype)
    block = Block(model, shard)

    def body(carry, inputs):
        x_BLD, cache = carry
        layer_params, layer = inputs
        layer_cache = LayerCache(cache, layer, row, positions_BL)
        return block.apply({"params": wide_kernels(layer_params, dtype)}, x_BLD, places, layer_cache), None

    start = (embed(model, params["embedding"], tokens_BL, positions_BL, dtype, shard), cache)
    (x_BLD, cache), _ = over_layers(body, start, params["blocks"])
    return final_norm(model, params, x_BLD), cache


def over_layers(body: Callable, start, blocks, unroll: bool = False):
    """`jax.lax.scan` of body(carry, (a layer's parameters, its number)) over stacked blocks; with blocks apart, the same one by one."""
    if not isinstance(blocks, tuple):
        num_layers = jax.tree.leaves(blocks)[0].shape[0]
        return jax.lax.scan(body, start, (blocks, jnp.arange(num_layers)), unroll=unroll)
    carry, outputs = start, []
    for layer, layer_params in enumerate(blocks):
        carry, output = body(carry, (layer_params, layer))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def final_norm(model: schema.Model, params: dict, x_BLD):
    return Norm(model).apply({"params": params["final_norm"]}, x_BLD)


def head_kernel(model: schema.Model, params: dict):
    """[V, D]: the embedding itself when tied, else the head's kernel transposed."""
    if model.tie_embeddings:
        return params["embedding"]["tokens"]
    return params["head"]["weight"] if "weight" in params["head"] else params["head"]["kernel"].T


def few_logits(model: schema.Model, params: dict, x_TD, by_outputs: bool):
    """[T, V] of this device's rows of the head, those of padding too, in at least float32: for decoding. The loss has its own."""
    head_VD, dtype = head_kernel(model, params).astype(x_TD.dtype), jnp.promote_types(x_TD.dtype, jnp.float32)
    if by_outputs:
        return product_by_outputs(x_TD, head_VD, dtype)
    return jnp.einsum("td,vd->tv", x_TD, head_VD, preferred_element_type=dtype)


def mean_square(x):
    """mean(x²) in at least float32: the scale of activations, for the metrics."""
    return jnp.mean(jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))))
