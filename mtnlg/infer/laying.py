"""Weights as generation reads them: cast, gathered, and one parameter after the other brought into the form that `spmd.Laid` says."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.tree import by_path, cast
from mtnlg.model.int8 import input_dims, narrow


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
        spec = _at(specs[0] if laid.apart else specs, path)
        sharding = jax.tree.map(lambda spec: NamedSharding(mesh, spec), spec, is_leaf=spmd.is_spec)
        make = jax.jit(functools.partial(_laid, laid, path), out_shardings=sharding)
        *outer, name = path.split("/")
        leaf_N = leaves.pop(path)
        for number, layer in enumerate(layers):
            functools.reduce(lambda tree, key: tree.setdefault(key, {}), outer, layer)[name] = make(leaf_N, number)
    return {**whole, "blocks": tuple(layers) if laid.apart else layers[0]}


def _at(tree: dict, path: str):
    return functools.reduce(lambda tree, key: tree[key], path.split("/"), tree)


def _laid(laid: spmd.Laid, path: str, leaf_N, layer):
    """A parameter of all layers, or of the one."""
    leaf, eight_bits = leaf_N[layer] if laid.apart else leaf_N, laid.int8 and path.endswith("/kernel")
    if not eight_bits:
        return leaf
    one = functools.partial(narrow, dims=input_dims(path))
    return one(leaf) if laid.apart else jax.vmap(one)(leaf)
