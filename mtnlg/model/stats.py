"""Norms by group of parameters, for the metrics: one number for the embedding, attention, feed-forward, norms and head."""

import collections

import jax.numpy as jnp

from mtnlg.core.tree import by_path, squared_norm


def group(path: str) -> str:
    """'attention' of 'blocks/attention/query/kernel': the part of the model a parameter belongs to."""
    if "norm" in path:
        return "norms"
    parts = path.split("/")
    return parts[1] if parts[0] == "blocks" else parts[0]


def group_norms(tree) -> dict:
    """{group: L2 norm} over a tree shaped like the parameters."""
    squares = collections.defaultdict(list)
    for path, leaf in by_path(tree).items():
        squares[group(path)].append(squared_norm(leaf))
    return {name: jnp.sqrt(sum(parts)) for name, parts in squares.items()}
