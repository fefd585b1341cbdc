"""The device mesh: five axes in order of bandwidth, slowest links outermost."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.collectives import zigzag
from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import AXES

BATCH = P(("replica", "data"), "context")  # the specs of a batch array [B, L]


def make(degrees: schema.Mesh, devices=None) -> Mesh:
    """The mesh over the first devices (None: of this job), as many as the degrees multiply to.

    Raises ConfigError when there are fewer, when a job of several processes has more (no process may stand idle), or when
    replicas do not fit the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(getattr(degrees, axis) for axis in AXES)
    wanted, there = math.prod(shape), len(devices)
    product = " x ".join(f"mesh.{axis}={degree}" for axis, degree in zip(AXES, shape, strict=True) if degree > 1) or "a mesh of 1"
    if wanted > there or (wanted < there and jax.process_count() > 1):
        cure = f"degrees that multiply to {there}, or (virtual ones, on a CPU) JAX_NUM_CPU_DEVICES={wanted} before the command"
        if jax.process_count() > 1:
            cure = f"degrees that multiply to {there}, or other --processes and --devices; no device of a job may stand idle"
        raise ConfigError(f"{product} needs {wanted} devices, and there are {there}", "--config.mesh", cure)
    return Mesh(_arranged(shape, devices[:wanted]), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def in_words(degrees: schema.Mesh) -> str:
    """Every degree above 1, and what else the keys of the mesh say."""
    product = ", ".join(f"{axis} {getattr(degrees, axis)}" for axis in AXES if getattr(degrees, axis) > 1) or "one device"
    return f"{product}; zero {degrees.zero}, sequence_parallel {degrees.sequence_parallel}"


def _arranged(shape: tuple[int, ...], devices) -> np.ndarray:
    """Devices such that neighbours along the last axes have the fastest links.

    Between slices of TPUs only `replica` goes over the slow network. GPUs call every host a slice; there any axis may leave it, and the
    order of the devices alone keeps the last axes inside.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        what = f"mesh.replica={shape[0]} over {slices} slices: only replicas may lie on different slices"
        raise ConfigError(what, "--config.mesh.replica", f"--config.mesh.replica={slices}, or a multiple of it")
    within, between = (shape[0] // slices, *shape[1:]), (slices, *(1,) * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def local_rows(mesh: Mesh, num_rows: int, devices=None) -> np.ndarray:
    """Which rows of a microbatch the devices (None: of this process) hold, in order: what has to be read for them."""
    held = NamedSharding(mesh, P(BATCH[0])).devices_indices_map((num_rows,))
    devices = jax.local_devices() if devices is None else devices
    return np.unique(np.concatenate([np.arange(num_rows)[held[device]] for device in devices if device in held]))


def put_rows(mesh: Mesh, batch: dict, num_rows: int) -> dict:
    """A step's batch on the mesh: host arrays [M, local rows, L] of this process as global arrays [M, num_rows, L], places in zigzag."""
    rows = local_rows(mesh, num_rows)

    def one(array):
        order = zigzag(array.shape[2], mesh.shape["context"])

        def part(index):
            microbatches, wanted, places = index
            return array[microbatches][:, np.searchsorted(rows, np.arange(num_rows)[wanted])[:, None], order[places]]

        return jax.make_array_from_callback((array.shape[0], num_rows, array.shape[2]), NamedSharding(mesh, P(None, *BATCH)), part)

    return {name: one(array) for name, array in batch.items()}


def put(mesh: Mesh, batch: dict, spec: P = BATCH) -> dict:
    """Host arrays [..., B, L], the same in every process, as global arrays on the mesh; parted along `context`, L lies in zigzag."""

    def one(array):
        sharding = NamedSharding(mesh, P(*[None] * (array.ndim - len(spec)), *spec))
        if "context" not in spec:
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
        order = zigzag(array.shape[-1], mesh.shape["context"])
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index[:-1]][..., order[index[-1]]])

    return {name: one(array) for name, array in batch.items()}
