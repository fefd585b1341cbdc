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
    """The mesh over the first device. Raises ConfigError for any degree above 1, which this version cannot honour."""
    for axis in AXES:
        if getattr(degrees, axis) != 1:
            what = f"mesh.{axis}={getattr(degrees, axis)}: this version trains on one device"
            raise ConfigError(what, f"--config.mesh.{axis}", f"--config.mesh.{axis}=1")
    return Mesh(np.asarray(jax.devices()[:1]).reshape((1,) * len(AXES)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def put(mesh: Mesh, batch: dict, spec: P = BATCH) -> dict:
    """Host arrays [..., B, L] as global arrays on the mesh, sharded over samples and places."""
    return {name: jax.device_put(array, NamedSharding(mesh, P(*[None] * (array.ndim - len(spec)), *spec))) for name, array in batch.items()}
