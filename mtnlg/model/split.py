"""One block whose backward is cut in two (Qi et al. 2024, arXiv 2401.10241, section 2), as a pipeline stage needs it.

F: forward, keeping what the backward reads. B: from that to the gradients of the input, of biases and norms, and to what the kernels'
gradients are made of. W: these, later. All functions are of one layer, on this device's shards; F, B and W may be traced in different
loops of a program, with arrays of the same shapes.
"""

import math

import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.core.collectives import ContextShard, TensorShard
from mtnlg.core.prng import Dropout
from mtnlg.core.tree import by_path, nested
from mtnlg.model import transformer
from mtnlg.model.attention_core import Places
from mtnlg.model.block import Block
from mtnlg.model.layers import Tap, num_input_dims

SAME_INPUT = {"attention/key_value/kernel": "attention/query/kernel", "mlp/gate/kernel": "mlp/up/kernel"}  # kept once for both


def parts(layer: dict) -> tuple[dict, dict]:
    """(kernels, biases and norms) of a tree of blocks, by path."""
    leaves = by_path(layer)
    kernels = {path: leaf for path, leaf in leaves.items() if path.endswith("/kernel")}
    return kernels, {path: leaf for path, leaf in leaves.items() if path not in kernels}


class SplitBlock:
    """F, B and W of one block. `keep` must have been traced before `backward` is: it finds out what there is to keep."""

    def __init__(self, model: schema.Model, shard: TensorShard, context: ContextShard, recompute: str):
        self.block = Block(model, shard, context, recompute_core=recompute == "selective")
        self._kept, self._deferred = _Packing(), _Packing()

    def forward(self, x_BLD, layer: dict, places: Places, dropout: Dropout | None):
        """The block's output [B, L, D]; nothing is kept."""
        return self.block.apply({"params": layer}, x_BLD, places, None, dropout)[0]

    def keep(self, x_BLD, layer: dict, places: Places, dropout: Dropout | None):
        """F: (output [B, L, D], arrays that `backward` wants)."""
        kernels, vectors = parts(layer)

        def run(x_BLD, vectors, taps):
            variables = {"params": nested({**kernels, **vectors}), "taps": nested(taps)}
            return self.block.apply(variables, x_BLD, places, None, dropout)[0]

        taps = {path: self._tap(path, kernel, x_BLD) for path, kernel in kernels.items()}
        run = jax.checkpoint(run, policy=_worth_keeping, prevent_cse=False)
        y_BLD, pull_back = jax.vjp(run, x_BLD, vectors, taps)
        return y_BLD, self._kept.pack(pull_back, (layer, places, dropout))

    def backward(self, kept: list, d_y_BLD, layer: dict, places: Places, dropout: Dropout | None):
        """B: (d_x [B, L, D], {path: gradient} of biases and norms, arrays that `weights` wants)."""
        pull_back = self._kept.unpack(kept, (layer, places, dropout))
        d_x_BLD, d_vectors, taps = pull_back(d_y_BLD)
        for path, other in SAME_INPUT.items():
            if path in taps:
                taps[path] = taps[path]._replace(inputs=taps[other].inputs)
        return d_x_BLD, d_vectors, self._deferred.pack(taps, ())

    def weights(self, deferred: list, kernels: dict) -> dict:
        """W: {path: gradient, in at least float32} of the kernels, which are asked for their shapes only."""
        taps = self._deferred.unpack(deferred, ())

        def gradient(path, kernel):
            tap, dtype = taps[path], jnp.promote_types(kernel.dtype, jnp.float32)
            return jnp.einsum("bli,blo->io", *tap, preferred_element_type=dtype).reshape(kernel.shape)

        return {path: gradient(path, kernel) for path, kernel in kernels.items()}

    def _tap(self, path: str, kernel, x_BLD) -> Tap:
        num_in = math.prod(kernel.shape[: num_input_dims(path)])
        rows, places = x_BLD.shape[0], x_BLD.shape[1] * (self.block.shard.size if self.block.shard.shards_sequence else 1)
        return Tap(*(jnp.zeros((rows, places, width), x_BLD.dtype) for width in (num_in, kernel.size // num_in)))


# Primitives whose results are kept: products, sums over a row and what is as small, exponentials, and the comparisons that draw dropout
# masks; and what has a name (`checkpoint_name`), as the result of attention in blocks. Everything else is as large and cheap to make again.
KEPT = ("dot_general", "custom_vjp_call", "reduce_sum", "reduce_max", "rsqrt", "exp", "lt", "name")


def _worth_keeping(primitive, *operands, **parameters) -> bool:
    return primitive.name in KEPT and transformer.saved(primitive, *operands, **parameters)


class _Packing:
    """Which leaves of a tree have to be kept: each array once, and none that is at hand again when it is unpacked."""

    def pack(self, tree, at_hand) -> list:
        leaves, self._structure = jax.tree.flatten(tree)
        known = [id(leaf) for leaf in jax.tree.leaves(at_hand)]
        packed, self._places = {}, []
        for leaf in leaves:
            if id(leaf) in known:
                self._places.append((True, known.index(id(leaf))))
            else:
                packed.setdefault(id(leaf), leaf)
                self._places.append((False, list(packed).index(id(leaf))))
        return list(packed.values())

    def unpack(self, packed: list, at_hand):
        known = jax.tree.leaves(at_hand)
        return jax.tree.unflatten(self._structure, [known[n] if is_known else packed[n] for is_known, n in self._places])
