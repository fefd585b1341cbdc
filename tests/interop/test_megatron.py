"""Megatron-LM's checkpoints, as numpy arrays: parted here row by row, put together by the importer."""

import dataclasses

import numpy as np
import pytest
from megatron_tree import CORE, GROUPED, LEGACY, OLD, Tree, args_of, parted, random_params

from mtnlg.core.errors import ConfigError, DataError
from mtnlg.interop import megatron, megatron_ranks, megatron_shards
from mtnlg.interop.layout import name_of
from mtnlg.interop.megatron_names import HEAD, plain
from mtnlg.model import count

RANKS = [(ranks, stages) for ranks in (1, 2, 4) for stages in (1, 2)]
KINDS = [(OLD, LEGACY, 0), (OLD, LEGACY, 1.0), (OLD, LEGACY, 2.0), (OLD, LEGACY, 3.0), (OLD, CORE, 3.0), (GROUPED, CORE, 3.0)]


def tree_of(foreign) -> dict[str, np.ndarray]:
    """Every parameter, layers stacked."""
    paths = dict.fromkeys(key.path for key in foreign.layout.keys())  # noqa: SIM118 (a method of the layout's)
    return {path: foreign.read_stacked(path, (slice(None),), None) for path in paths}


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)


@pytest.mark.parametrize(("ranks", "stages"), RANKS)
@pytest.mark.parametrize(("model", "names", "version"), KINDS)
def test_every_version_on_every_grid(model, names, version, ranks, stages):
    params = random_params(model)
    tree = Tree(model, names, version, ranks, stages)
    foreign = megatron.assemble(args_of(tree), version, parted(params, tree), "here", model.vocab_size)
    assert foreign.model == dataclasses.replace(model, num_kv_heads=model.heads[1], head_dim=model.heads[2], d_ff=model.ff_dim)
    same(tree_of(foreign), params)
    assert {path: rows.shape for path, rows in tree_of(foreign).items()} == {
        path: leaf.shape for path, leaf in megatron_leaves(model).items()
    }


def megatron_leaves(model):
    from mtnlg.core.tree import by_path

    return by_path(count.abstract_params(model))
