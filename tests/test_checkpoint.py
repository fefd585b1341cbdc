"""How arrays lie in a checkpoint: a layer of a stack is read without the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from mtnlg import checkpoint
from mtnlg.core import schema
from mtnlg.layered import LayerReader
from mtnlg.parallel import mesh as meshes

LAYERS = 24
BYTES_READ = "/tensorstore/kvstore/file/bytes_read"


def save(folder, params):
    checkpoints = checkpoint.Checkpoints(folder, keep_last=1)
    checkpoints.save(1, params, {"count": jnp.zeros((), jnp.int32), "mu": params}, {})
    checkpoints.wait()
    return folder / "1"


def random(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def bytes_read() -> int:
    return sum(value["value"] for metric in tensorstore.experimental_collect_matching_metrics(BYTES_READ) for value in metric["values"])


def test_one_layer_is_read_alone(tmp_path):
    stack = random(LAYERS, 512, 512)
    assert stack[0].nbytes == checkpoint.SMALLEST_CHUNK_BYTES
    reader = LayerReader(save(tmp_path, {"blocks": {"kernel": jnp.asarray(stack)}}))
    before = bytes_read()
    np.testing.assert_array_equal(reader.read("blocks/kernel", 7), stack[7])
    assert bytes_read() - before < 2 * stack[0].nbytes


@pytest.mark.parametrize("spec", [jax.P(), jax.P(None, "data", "tensor"), jax.P(("data", "tensor"))])
def test_every_layer_is_there_however_it_lay_on_the_mesh(tmp_path, monkeypatch, spec):
    monkeypatch.setattr(checkpoint, "SMALLEST_CHUNK_BYTES", 1)
    monkeypatch.setattr(checkpoint, "LARGEST_CHUNK_BYTES", 1024)  # less than a layer
    mesh = meshes.make(schema.Mesh(data=2, tensor=2))
    params = {"blocks": {"kernel": random(LAYERS, 32, 16), "bias": random(LAYERS, 3)}, "embedding": {"tokens": random(60, 16)}}
    place = lambda leaf, spec: jax.device_put(leaf, jax.NamedSharding(mesh, spec))  # noqa: E731
    lying = {"blocks": {"kernel": place(params["blocks"]["kernel"], spec), "bias": place(params["blocks"]["bias"], jax.P())}}
    step = save(tmp_path, lying | {"embedding": {"tokens": place(params["embedding"]["tokens"], jax.P("tensor"))}})
    reader, stored = LayerReader(step), checkpoint.stored_arrays(step, "params")
    for path, leaf in checkpoint.by_path(params).items():
        np.testing.assert_array_equal(stored[path], leaf)
        layers = [reader.read(path, layer) for layer in range(LAYERS)] if "blocks" in path else reader.read(path, None)
        np.testing.assert_array_equal(layers, leaf)
