"""Parameters on stages: zeros stay zeros, and no device ever holds what all stages have."""

import math

import jax
import numpy as np
import pytest
from meshes import batch, config_of

from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.parallel import arrangement, timetable
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states
from mtnlg.train import step as steps

WIDE = schema.Model(num_layers=17, d_model=256, num_heads=4, vocab_size=256, seq_len=32)


def test_zeros_stay_zeros():
    """Under weight decay, clipping and Adam; on two stages of 3 and 1 layers and a vocabulary of 32 that 2 x 3 devices do not divide."""
    config = config_of("llama", {"pipe": 3, "tensor": 2}, num_layers=4, pipeline={"layers_per_stage": (3, 1, 0)}, microbatch_size=8)
    with jax.enable_x64(True):
        mesh = meshes.make(config.mesh)
        program, state = steps.make(config, mesh), states.make(config, mesh)
        for number in range(3):
            fields = meshes.put(mesh, batch(number, 2), jax.P(None, *meshes.BATCH))
            state, _ = program(state, fields, 2, number, 1e-2, False, timetable.on_mesh(config, mesh, 2))
        for path, leaf in by_path(jax.device_get(state)).items():
            if "blocks/" in path:
                there = arrangement.layers(config) >= 0
                assert leaf.shape[0] == 9 and leaf[there].any() and not leaf[~there].any(), path
            if path.endswith(("embedding/tokens", "head/kernel")):
                rows = leaf if path.endswith("tokens") else leaf.T
                assert rows.shape[0] == 36 and rows[:27].any() and not rows[32:].any(), path


def local_bytes(tree) -> int:
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["1f1b", "zb_v", "interleaved"])
def test_no_device_holds_what_all_stages_have(name):
    """Born in place; in the canonical form no larger than arranged; one leaf at a time converted."""
    train = schema.Train(batch_size=8, microbatch_size=1)
    config = schema.Config(model=WIDE, train=train, mesh=schema.Mesh(pipe=8, zero=0), pipeline=schema.Pipeline(schedule=name))
    mesh = meshes.make(config.mesh)
    abstract, canonical = states.abstract(config, mesh), states.abstract_canonical(config, mesh)
    born = jax.jit(lambda: states._arranged(config), out_shardings=states.shardings(config, mesh)).lower().compile().memory_analysis()
    assert born.temp_size_in_bytes < local_bytes(abstract)
    assert local_bytes(canonical) < 1.1 * local_bytes(abstract)
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(canonical))
    path = "params/blocks/mlp/up/kernel"
    for convert, tree in ((arrangement.restore_order, abstract), (arrangement.arrange, canonical)):
        leaf = by_path(tree)[path]
        program = arrangement.converter(config, mesh, convert, path, leaf.shape, leaf.dtype).lower(leaf).compile()
        assert program.memory_analysis().temp_size_in_bytes < 2.5 * largest


def test_back_and_forth_is_the_same():
    config = config_of("mtnlg", {"pipe": 2, "tensor": 2}, num_layers=5, pipeline={"schedule": "zb_v"}, microbatch_size=4)
    with jax.enable_x64(True):
        mesh = meshes.make(config.mesh)
        state = states.make(config, mesh)
        back = arrangement.arranged(config, mesh, arrangement.canonical(config, mesh, state))
        for (path, leaf), other in zip(by_path(state).items(), by_path(back).values(), strict=True):
            np.testing.assert_array_equal(leaf, other, err_msg=path)
            assert leaf.sharding == other.sharding, path
