"""Trees of arrays by path: `blocks/attention/query/kernel`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def path_name(path: tuple) -> str:
    """'a/b/c' of a jax key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def map_with_path(function: Callable, tree, *rest, is_leaf: Callable | None = None):
    """`function('a/b/c', leaf, ...)` on every leaf."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaf: function(path_name(path), *leaf), tree, *rest, is_leaf=is_leaf)


def by_path(tree, is_leaf: Callable | None = None) -> dict:
    """{'a/b/c': leaf}, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def nested(leaves: dict) -> dict:
    """The tree of dicts of {'a/b/c': leaf}."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *outer, name = path.split("/")
        at = tree
        for key in outer:
            at = at.setdefault(key, {})
        at[name] = leaf
    return tree


def cast(tree, dtype):
    """Every leaf in `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def squared_norm(leaf):
    """Sum of squares of one array."""
    return jnp.sum(jnp.square(leaf))
