"""The pieces a block is made of: linear maps, norms, the feed-forward layer."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.core.collectives import TensorShard


class Tap(NamedTuple):
    """What the gradient of a kernel is made of: its inputs [..., I] and the gradient of its outputs [..., O]."""

    inputs: jax.Array
    d_outputs: jax.Array


def num_input_dims(path: str) -> int:
    """How many of the first dims of a block's parameter are summed over: of a kernel, the `in_dims` of its `Linear`."""
    return (2 if path.endswith("attention/output/kernel") else 1) if path.endswith("/kernel") else 0


def _product(rows, kernel):
    """[..., I] times a kernel of I x O numbers -> [..., O]."""
    return rows @ kernel.reshape(rows.shape[-1], -1)


def product_by_outputs(rows, weight, dtype=None):
    """`_product` with the kernel's transpose, O x I numbers, made one output after the other: for few rows the fastest on a CPU.

    dtype: of the result; None: that of rows.
    """
    rows_TI = rows.reshape(-1, rows.shape[-1])
    y_OT = jnp.einsum("oi,ti->ot", weight.reshape(-1, rows.shape[-1]), rows_TI, preferred_element_type=dtype)
    # The compiler would turn product and transpose into a product by rows.
    return jax.lax.optimization_barrier(y_OT).T.reshape(*rows.shape[:-1], -1)


@jax.custom_vjp
def tapped_product(rows, kernel, tap: Tap):
    """`_product`, whose backward makes no gradient of the kernel: that of `tap`, whose value is never read, is what it is made of.

    So the backward of a block can be cut in two (Qi et al. 2024, arXiv 2401.10241, section 2): B needs no kernel's gradient, and W
    makes it later, from the taps.
    """
    return _product(rows, kernel)


tapped_product.defvjp(
    lambda rows, kernel, tap: (_product(rows, kernel), (rows, kernel)),
    lambda saved, g: (g @ saved[1].reshape(saved[0].shape[-1], -1).T, None, Tap(saved[0], g)),
)


class Linear(nn.Module):
    """y = x W + b, contracting the last `len(in_dims)` dims of x; W is [*in_dims, *out_dims], b [*out_dims].

    Both sides are flattened to one matrix product. Computes in x's dtype. Where the rows of W lie on several devices, `leave` sums
    their products; the bias is added once, after that. With a `Tap` in the collection "taps", its gradient comes instead of W's.
    W is the parameter `kernel`, or, laid for decoding, its transpose [*out_dims, *in_dims] the parameter `weight`.
    """

    in_dims: tuple[int, ...]
    out_dims: tuple[int, ...]
    bias: bool
    std: float
    leave: Callable = lambda partial: partial

    @nn.compact
    def __call__(self, x):
        rows = x if len(self.in_dims) == 1 else x.reshape(*x.shape[: x.ndim - len(self.in_dims)], math.prod(self.in_dims))
        y = self.leave(self._times_kernel(rows))
        if self.bias:
            # A bias in a wider dtype is added there, so that its gradient, a sum over every token, is summed there too.
            y = (y + self.param("bias", nn.initializers.zeros, self.out_dims, x.dtype).reshape(-1)).astype(x.dtype)
        return y.reshape(*y.shape[:-1], *self.out_dims)

    def _times_kernel(self, rows):
        if self.has_variable("params", "weight"):
            return product_by_outputs(rows, self.get_variable("params", "weight"))
        kernel = self.param("kernel", nn.initializers.normal(self.std), self.in_dims + self.out_dims, rows.dtype)
        if self.has_variable("taps", "kernel"):
            return tapped_product(rows, kernel, self.get_variable("taps", "kernel"))
        return _product(rows, kernel)


def normalise(x, scale, bias, *, kind: str, eps: float):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last dim, computed in at least float32."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    wide = x.astype(dtype)
    if kind == "layernorm":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    wide = wide * scale.astype(dtype)
    if bias is not None:
        wide = wide + bias.astype(dtype)
    return wide.astype(x.dtype)


class Norm(nn.Module):
    """A norm with its learned scale and, for layernorm with bias_norm, bias."""

    model: schema.Model

    @nn.compact
    def __call__(self, x):
        with_bias = self.model.norm == "layernorm" and self.model.bias_norm
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], x.dtype) if with_bias else None
        return normalise(x, scale, bias, kind=self.model.norm, eps=self.model.norm_eps)


def gelu(x):
    """The tanh form. In float16 the cube of 41 is infinite already, so that it is computed in float32 there."""
    return nn.gelu(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype) if x.dtype == jnp.float16 else nn.gelu(x)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_exact": lambda x: nn.gelu(x, approximate=False),
    "relu": nn.relu,
    "swiglu": nn.silu,
}


class MLP(nn.Module):
    """The feed-forward layer: D to F columns, of which this device has its part, a non-linearity (gated for SwiGLU, Shazeer 2020), and
    back to D."""

    model: schema.Model
    shard: TensorShard

    @nn.compact
    def __call__(self, x_BLD):
        model, width, ff_dim = self.model, x_BLD.shape[-1], self.model.ff_dim // self.shard.size
        x_BLD = self.shard.enter(x_BLD, "feed-forward, into its columns")

        def columns(name):
            return Linear((width,), (ff_dim,), model.bias_mlp, model.init_std, name=name)(x_BLD)

        activate = ACTIVATIONS[model.activation]
        h_BLF = activate(columns("gate")) * columns("up") if model.activation == "swiglu" else activate(columns("up"))
        leave = lambda partial: self.shard.leave(partial, "feed-forward, out of its rows")  # noqa: E731
        return Linear((ff_dim,), (width,), model.bias_mlp, residual_std(model), leave, name="down")(h_BLF)


def residual_std(model: schema.Model) -> float:
    """Initial standard deviation of projections into the residual stream (GPT-2; Megatron-LM's scaled init)."""
    return model.init_std / math.sqrt(2 * model.num_layers)
