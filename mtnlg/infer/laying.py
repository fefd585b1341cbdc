"""Weights as generation reads them: cast, gathered, and one parameter after the other brought into the form that `spmd.Laid` says."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.tree import by_path, cast, nested
from mtnlg.model.int8 import narrow
from mtnlg.model.layers import num_input_dims


def lay(config: schema.Config, mesh: Mesh, laid: spmd.Laid, params: dict, consume: bool = False) -> dict:
    """The parameters, in their storage sharding, as `laid` says. consume: they are taken out of the tree `params`, so that no more than
    one of the model's matrices, of all layers, is there twice."""
    # With ZeRO 0 they are stored as they are computed with, and stay where they are. (jax.jit would copy them.)
    whole = cast(params, config.train.compute_dtype) if config.mesh.zero == 0 else jax.jit(spmd.compute_params(config, mesh))(params)
    if consume:
        params.clear()
    if laid == spmd.Laid():
        return whole
    leaves, specs = by_path(whole.pop("blocks")), spmd.laid_specs(config, laid)["blocks"]
    layers: list[dict] = [{} for _ in range(config.model.num_layers)] if laid.apart else [{}]
    for path in list(leaves):
        laid_path = spmd.laid_path(laid, path)
        spec = functools.reduce(lambda tree, key: tree[key], laid_path.split("/"), specs[0] if laid.apart else specs)
        sharding = jax.tree.map(lambda spec: NamedSharding(mesh, spec), spec, is_leaf=spmd.is_spec)
        make = jax.jit(functools.partial(_laid, laid, path), out_shardings=sharding)
        leaf_N = leaves.pop(path)
        for number, layer in enumerate(layers):
            layer[laid_path] = make(leaf_N, number)
    if laid.apart and "head" in whole:
        sharding = NamedSharding(mesh, spmd.laid_specs(config, laid)["head"]["weight"])
        whole["head"] = {"weight": jax.jit(jnp.transpose, out_shardings=sharding)(whole["head"].pop("kernel"))}
    blocks = tuple(map(nested, layers))
    return {**whole, "blocks": blocks if laid.apart else blocks[0]}


def _laid(laid: spmd.Laid, path: str, leaf_N, layer):
    """A parameter of all layers, or of the one."""

    def one(leaf):
        num_in = num_input_dims(path)
        laid_leaf = narrow(leaf, tuple(range(num_in))) if laid.int8 and num_in else leaf
        return jax.tree.map(lambda a: jnp.transpose(a, (*range(num_in, a.ndim), *range(num_in))), laid_leaf) if laid.apart else laid_leaf

    return one(leaf_N[layer]) if laid.apart else jax.vmap(one)(leaf_N)
