"""The device mesh: five axes in order of bandwidth, slowest links outermost."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError

AXES = ("replica", "pipe", "data", "context", "tensor")
BATCH = P(("replica", "data"), "context")  # the specs of a batch array [B, L]


def make(degrees: schema.Mesh) -> Mesh:
    """The mesh over the first devices at hand. Raises ConfigError when there are fewer than the degrees multiply to."""
    shape = tuple(getattr(degrees, axis) for axis in AXES)
    devices = jax.devices()
    needed = int(np.prod(shape))
    if needed > len(devices):
        raise ConfigError(f"the mesh {dict(zip(AXES, shape, strict=True))} needs {needed} devices, there are {len(devices)}", "mesh")
    return Mesh(np.asarray(devices[:needed]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def put(mesh: Mesh, batch: dict, spec: P = BATCH) -> dict:
    """Host arrays [..., B, L] as global arrays on the mesh, sharded over samples and places."""
    return {
        name: jax.device_put(array, NamedSharding(mesh, P(*[None] * (array.ndim - len(spec)), *spec))) for name, array in batch.items()
    }
