"""The mesh: neighbours on the last axes, replicas on different slices, nothing left out in silence."""

import dataclasses

import jax
import numpy as np
import pytest

from mtnlg.core import schema
from mtnlg.core.collectives import zigzag
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import mesh as meshes


def test_the_last_axes_have_neighbours():
    mesh = meshes.make(schema.Mesh(replica=2, data=2, tensor=2))
    assert mesh.axis_names == ("replica", "pipe", "data", "context", "tensor") and mesh.devices.shape == (2, 1, 2, 1, 2)
    assert [device.id for device in mesh.devices.ravel()] == list(range(8))


def test_a_smaller_mesh_takes_the_first_devices():
    assert [device.id for device in meshes.make(schema.Mesh(tensor=2)).devices.ravel()] == [0, 1]


def test_too_few_devices():
    with pytest.raises(ConfigError, match="mesh.replica=8 x mesh.tensor=4 needs 32 devices, and there are 16"):
        meshes.make(schema.Mesh(replica=8, tensor=4))


def test_a_job_of_several_processes_leaves_no_device_idle(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="mesh.data=4 needs 4 devices, and there are 16"):
        meshes.make(schema.Mesh(data=4))


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU as a mesh asks for: eight chips in two slices."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0
    process_index: int = 0


CHIPS = [Chip(number, number // 4, (number % 2, number // 2 % 2, 0)) for number in range(8)]


@pytest.mark.parametrize("degrees", [{"replica": 2, "data": 2, "tensor": 2}, {"replica": 4, "tensor": 2}, {"replica": 2, "tensor": 4}])
def test_only_replicas_lie_on_different_slices(degrees):
    shuffled = [CHIPS[number] for number in np.random.default_rng(0).permutation(8)]
    devices = meshes._arranged(tuple(degrees.get(axis, 1) for axis in meshes.AXES), shuffled)
    for replica in devices:
        assert len({chip.slice_index for chip in replica.ravel()}) == 1
    halves = [{chip.slice_index for chip in half.ravel()} for half in np.split(devices, 2)]
    assert halves == [{0}, {1}]


def test_a_mesh_that_would_cross_slices_inside_a_replica():
    with pytest.raises(ConfigError, match="mesh.replica=1 over 2 slices: only replicas may lie on different slices"):
        meshes._arranged((1, 1, 4, 1, 2), CHIPS)


def test_gpus_of_several_hosts_call_each_a_slice_and_any_axis_may_cross():
    cards = [dataclasses.replace(chip, platform="gpu", device_kind="card") for chip in CHIPS]
    devices = meshes._arranged((1, 1, 2, 1, 4), cards)
    assert [[card.slice_index for card in row] for row in devices.reshape(2, 4)] == [[0] * 4, [1] * 4]


def test_put_gives_every_device_its_rows():
    mesh = meshes.make(schema.Mesh(replica=2, data=2, tensor=2))
    tokens = np.arange(2 * 8 * 3, dtype=np.int32).reshape(2, 8, 3)
    there = meshes.put(mesh, {"tokens": tokens}, jax.P(None, *meshes.BATCH))["tokens"]
    np.testing.assert_array_equal(there, tokens)
    for shard in there.addressable_shards:
        replica, _, data, _, _ = (int(place[0]) for place in np.nonzero(mesh.devices == shard.device))
        first = 2 * (2 * replica + data)
        np.testing.assert_array_equal(shard.data, tokens[:, first : first + 2])


def test_parts_of_a_sequence_lie_in_zigzag():
    assert zigzag(12, 3).tolist() == [0, 1, 10, 11, 2, 3, 8, 9, 4, 5, 6, 7]
    assert zigzag(5, 1).tolist() == list(range(5))
    mesh = meshes.make(schema.Mesh(data=2, context=2))
    tokens = np.arange(3 * 4 * 8, dtype=np.int32).reshape(3, 4, 8)
    everything = jax.P(None, *meshes.BATCH)
    for there in (meshes.put(mesh, {"tokens": tokens}, everything), meshes.put_rows(mesh, {"tokens": tokens}, 4)):
        for shard in there["tokens"].addressable_shards:
            _, _, data, context, _ = (int(place[0]) for place in np.nonzero(mesh.devices == shard.device))
            places = [[0, 1, 6, 7], [2, 3, 4, 5]][context]
            np.testing.assert_array_equal(shard.data, tokens[:, 2 * data : 2 * data + 2, places])
    # What is not parted along the sequence keeps its order.
    np.testing.assert_array_equal(meshes.put(mesh, {"tokens": tokens}, jax.P("data"))["tokens"], tokens)


def test_a_process_reads_the_rows_of_its_devices():
    """As if devices 2, 3, 6 and 7 were a process's: the second of two tensor pairs in each replica, and with it the second rows."""
    mesh = meshes.make(schema.Mesh(replica=2, data=2, tensor=2))
    mine = [device for device in jax.devices() if device.id in (2, 3, 6, 7)]
    assert meshes.local_rows(mesh, 8, mine).tolist() == [2, 3, 6, 7]
    assert meshes.local_rows(mesh, 8).tolist() == list(range(8))


def test_rows_that_were_read_lie_where_they_belong(monkeypatch):
    mesh = meshes.make(schema.Mesh(data=4, tensor=2))
    tokens = np.arange(3 * 8 * 5, dtype=np.int32).reshape(3, 8, 5)
    np.testing.assert_array_equal(meshes.put_rows(mesh, {"tokens": tokens}, 8)["tokens"], tokens)
    # A process that has read only half of the rows gives its own devices theirs.
    own = np.array([2, 3, 6, 7])
    monkeypatch.setattr(meshes, "local_rows", lambda *_: own)
    parts = {}
    monkeypatch.setattr(jax, "make_array_from_callback", lambda shape, sharding, part: parts.update(shape=shape, part=part))
    meshes.put_rows(mesh, {"tokens": tokens[:, own]}, 8)
    assert parts["shape"] == (3, 8, 5)
    np.testing.assert_array_equal(parts["part"]((slice(None), slice(6, 8), slice(None))), tokens[:, 6:8])
