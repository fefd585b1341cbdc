"""The replica check: devices that hold the same part of an array hold the same bits, or one of them was damaged or computes wrongly.

BLOOM's norms drifted apart between tensor ranks for weeks, unseen: nothing in a step looks at two copies of the same number.
"""

import collections

import jax
import numpy as np
from jax.sharding import Mesh

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.errors import ReplayError
from mtnlg.core.tree import by_path
from mtnlg.parallel import processes
from mtnlg.train import state as states
from mtnlg.train.checksum import checksums
from mtnlg.train.state import State


class Replicas:
    """Which devices of a mesh (D of them, in its order) hold copies of which of a state's arrays (N)."""

    def __init__(self, config: schema.Config, mesh: Mesh):
        state = states.abstract(config, mesh)
        self._mesh, self._leaves = mesh, by_path(state)
        self._parts = [[_text(leaf, device) for device in mesh.devices.flat] for leaf in self._leaves.values()]
        self._first_DN = np.array([[parts.index(part) for part in parts] for parts in self._parts]).T
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
        self._sums = jax.jit(spmd.on_each(mesh, specs, checksums))

    def uncovered(self) -> str | None:
        """For people: which arrays cannot be compared; None if there are none, or no second device."""
        alone = [name for name, parts in zip(self._leaves, self._parts, strict=True) if len(set(parts)) == len(parts)]
        if self._mesh.size == 1 or not alone:
            return None
        return f"{len(alone)} of {len(self._leaves)} arrays, {alone[0]} among them, have no second copy on any device to be compared with"

    def require_same(self, state: State, step: int) -> None:
        """Raises ReplayError in every process, naming array, part and devices, unless all copies have the same bits."""
        if (self._first_DN == np.arange(self._mesh.size)[:, None]).all():  # no device has what another one has
            return
        own = {shard.index[0].start or 0: shard.data[0] for shard in self._sums(state).addressable_shards}
        said = [pair for told in processes.gathered([(row, np.asarray(sums).tolist()) for row, sums in own.items()]) for pair in told]
        sums_DN = np.array([sums for _, sums in sorted(said)])
        differs_DN = sums_DN != np.take_along_axis(sums_DN, self._first_DN, 0)
        if differs_DN.any():
            raise self._differing(sums_DN, differs_DN, step)

    def _differing(self, sums_DN: np.ndarray, differs_DN: np.ndarray, step: int) -> ReplayError:
        wrong = np.flatnonzero(differs_DN.any(0))
        number = wrong[0]
        device = np.flatnonzero(differs_DN[:, number])[0]
        copies = np.flatnonzero(self._first_DN[:, number] == self._first_DN[device, number])
        (common, count), *_ = collections.Counter(sums_DN[copies, number].tolist()).most_common()
        odd = copies[sums_DN[copies, number] != common] if 2 * count > len(copies) else copies
        name = [*self._leaves][number] + self._parts[number][device]
        more = f", and {len(wrong) - 1} more arrays differ" if len(wrong) > 1 else ""
        what = f"of {len(copies)} copies of {name} those differ that lie on {', '.join(map(self._place, odd))}{more}"
        return ReplayError(what, f"step {step}", "the same command without such a device; it goes on from the last checkpoint")

    def _place(self, row: int) -> str:
        device = self._mesh.devices.flat[row]
        degrees = zip(self._mesh.axis_names, np.unravel_index(row, self._mesh.devices.shape), strict=True)
        where = ", ".join(f"{axis} {at}" for axis, at in degrees if self._mesh.shape[axis] > 1)
        return f"device {device.id} of process {device.process_index} ({where})"


def _text(leaf, device) -> str:
    """The part of an array that a device holds: '[0:2, :, 4:8]', or '' for all of it."""
    index = leaf.sharding.devices_indices_map(leaf.shape)[device]
    if all(part == slice(None) for part in index):
        return ""
    return f"[{', '.join(':' if part == slice(None) else f'{part.start or 0}:{part.stop}' for part in index)}]"
