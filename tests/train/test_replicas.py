"""Copies that differ between devices are found, whichever bit it is, before anything is saved; equal ones never are."""

import itertools
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flips import draw, flipped

from mtnlg import checkpoint
from mtnlg.core.errors import ReplayError
from mtnlg.core.tree import by_path
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import run as pretrain
from mtnlg.train import state as states
from mtnlg.train.checksum import checksum
from mtnlg.train.replicas import Replicas

WHOLE = {"mesh__data": "2", "mesh__tensor": "2", "mesh__zero": "0"}
PARTED = {"mesh__data": "2", "mesh__tensor": "2", "mesh__zero": "1"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "bool"])
def test_a_checksum_sees_every_bit_and_every_place(dtype):
    values = np.random.default_rng(0).standard_normal((3, 5))
    array = jnp.asarray(values > 0 if dtype == "bool" else 100 * values, dtype)
    device, of, num_bits = array.devices().pop(), jax.jit(checksum), 1 if dtype == "bool" else 8 * array.dtype.itemsize
    bits = [8 * array.dtype.itemsize * place + bit for place in range(array.size) for bit in range(num_bits)]
    seen = {int(of(array)), *(int(of(flipped(array, device, bit))) for bit in bits)}
    assert len(seen) == len(bits) + 1
    if dtype != "bool":
        swapped = [array.at[0, 0].set(-array[1, 1]).at[1, 1].set(array[0, 0]), array.at[0].set(array[2]).at[2].set(array[0])]
        mirrored = array.at[0, 0].set(1).at[0, 1].set(-1), array.at[0, 0].set(-1).at[0, 1].set(1)
        assert len({int(of(a)) for a in (array, *swapped, *mirrored)}) == 5


@pytest.fixture(scope="module")
def made(resolve):
    """A function: (config, mesh, state, replicas) of a mesh."""

    def of(mesh):
        config = resolve(**mesh)
        on = meshes.make(config.mesh)
        return on, states.make(config, on), Replicas(config, on)

    return of


@pytest.mark.parametrize("mesh", [WHOLE, PARTED, {"mesh__data": "4", "mesh__zero": "0"}], ids=["zero 0", "zero 1", "everywhere"])
def test_fifty_flipped_bits_are_found_and_named(mesh, made):
    on, state, replicas = made(mesh)
    replicas.require_same(state, 0)
    begun = time.perf_counter()
    replicas.require_same(state, 0)
    print(f"{1e3 * (time.perf_counter() - begun):.1f} ms for {len(jax.tree.leaves(state))} arrays on {on.size} devices")

    leaves = by_path(state)

    def has_copies(path):
        return len({str(shard.index) for shard in leaves[path].addressable_shards}) < on.size

    for seed in range(50):
        bad, path, device = draw(state, has_copies, seed)
        with pytest.raises(ReplayError, match=re.escape(path)) as raised:
            replicas.require_same(bad, 7)
        assert f"device {device.id} of process 0" in raised.value.what and raised.value.where == "step 7"
        num_copies = int(raised.value.what.split()[1])
        assert raised.value.what.count("process 0") == (1 if num_copies > 2 else 2), "the majority is taken for right"
    uncovered = {path for path in leaves if not has_copies(path)}
    assert bool(uncovered) == (mesh is PARTED)
    assert f"{len(uncovered)} of" in replicas.uncovered() if uncovered else replicas.uncovered() is None


def test_norms_that_drift_apart_between_tensor_ranks_are_found(made):
    """BLOOM's bug: both data ranks of one tensor rank hold another scale, so that no rank is in the minority."""
    on, state, replicas = made(WHOLE)
    scale = state.params["blocks"]["attention_norm"]["scale"]
    drifted = set(on.devices[..., 1].flat)
    parts = [jax.device_put(s.data * (1 + 1e-6 * (s.device in drifted)), s.device) for s in scale.addressable_shards]
    state.params["blocks"]["attention_norm"]["scale"] = jax.make_array_from_single_device_arrays(scale.shape, scale.sharding, parts)
    with pytest.raises(ReplayError, match="of 4 copies of params/blocks/attention_norm/scale those differ") as raised:
        replicas.require_same(state, 3)
    assert all(f"tensor {rank}" in raised.value.what for rank in (0, 1)) and raised.value.exit_code == 17


@pytest.mark.parametrize("mesh", [PARTED, {"mesh__data": "2", "mesh__zero": "3"}], ids=str)
def test_a_sound_run_is_not_stopped(mesh, resolve, tmp_path, capsys):
    assert pretrain.pretrain(resolve(**mesh, guard__replicas_every_steps="1"), str(tmp_path), {}).finished
    assert re.search(r"\d+ of \d+ arrays, .* have no second copy", capsys.readouterr().out)


@pytest.mark.parametrize("every", ["1", "500", "0"])
def test_nothing_damaged_is_saved(every, resolve, tmp_path, monkeypatch):
    """A bit that flips in the optimizer's moments after step 2, and from there gets into the weights. Not looked for, it is saved."""
    steps, make = itertools.count(1), pretrain.steps.make

    def faulty(config, mesh):
        program = make(config, mesh)

        def step(*arguments):
            state, told = program(*arguments)
            if next(steps) == 2:
                state, *_ = draw(state, lambda path: path == "optimizer/1/mu/blocks/mlp/up/bias", 0)
            return state, told

        return step

    monkeypatch.setattr(pretrain.steps, "make", faulty)
    config = resolve(**WHOLE, guard__replicas_every_steps=every)
    if every == "0":
        assert pretrain.pretrain(config, str(tmp_path), {}).finished
        assert checkpoint.whole_steps(tmp_path / "checkpoints") == [3, 6]
        return
    told = {"1": "optimizer/1/mu/blocks/mlp/up/bias.*step 2", "500": "params/blocks/mlp/up/bias.* 1 more arrays differ .step 3"}
    with pytest.raises(ReplayError, match=told[every]):
        pretrain.pretrain(config, str(tmp_path), {})
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == []
