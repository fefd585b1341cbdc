"""How many bytes a pipeline stage keeps between its ops, by tracing one block on abstract shapes: nothing is computed.

It says how large the rings of `pipeline.py` are; what an op needs while it runs comes on top.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import prng, schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.tree import map_with_path
from mtnlg.model import transformer
from mtnlg.model.block import Block
from mtnlg.model.split import SplitBlock
from mtnlg.parallel import stages


class SlotBytes(NamedTuple):
    """Bytes of one slot on one device: of the mailbox, of what F keeps for B, of what B defers to W."""

    mail: int
    kept: int
    deferred: int

    def of(self, slots) -> int:
        """Bytes of so many slots of each ring; the mailbox's spare is not counted."""
        return int(sum(size * number for size, number in zip(self, slots, strict=True)))


@functools.cache
def slot_bytes(config: schema.Config) -> SlotBytes:
    """The slots of a config's rings."""
    axes = [(axis, getattr(config.mesh, axis)) for axis in schema.AXES]
    _, (mail, *of_layer) = jax.make_jaxpr(functools.partial(_traced, config), axis_env=axes, return_shape=True)()
    longest = stages.of(config).layers.shape[2]
    return SlotBytes(_bytes(mail), *(longest * _bytes(arrays) for arrays in of_layer))


def _traced(config: schema.Config):
    """(a message, what is kept of one layer, what is deferred of it), as arrays."""
    model, mesh, dtype = config.model, config.mesh, jnp.dtype(config.train.compute_dtype)
    shard, context = TensorShard(mesh.tensor, mesh.sequence_parallel), ContextShard(mesh.context, ring=False)
    rows, length = config.microbatch_rows // mesh.num_sample_shards, model.seq_len // mesh.context
    x_BLD = jnp.zeros((rows, length // (shard.size if shard.shards_sequence else 1), model.d_model), dtype)
    zeros_BL = jnp.zeros((rows, length), jnp.int32)
    places, dropout = transformer.places_of(model, zeros_BL, zeros_BL, dtype, context), None
    if max(model.dropout_hidden, model.dropout_attention) > 0:
        places_L = jnp.arange(length)
        dropout = prng.Dropout(prng.key(0), jnp.arange(rows), shard.own_places(places_L, 0), places_L, jnp.arange(model.seq_len))

    def stored(path, leaf):
        return leaf.astype(dtype if path.endswith("/kernel") else config.train.param_dtype)

    layer = map_with_path(stored, Block(model, shard, context).init(prng.key(0), x_BLD, places)["params"])
    split = SplitBlock(model, shard, context, config.train.recompute)
    y_BLD, kept = split.keep(x_BLD, layer, places, dropout)
    return y_BLD, kept, split.backward(kept, y_BLD, layer, places, dropout)[2]


def _bytes(arrays) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
