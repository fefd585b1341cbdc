"""What MFU is measured against."""

import jax
import pytest

from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.train import peak


def test_virtual_cpu_devices_share_their_cores():
    assert peak.of_mesh(5.0, meshes.make(schema.Mesh(data=4))) == 5.0


def test_accelerators_add_up():
    class Card:
        platform = "gpu"

    mesh = meshes.make(schema.Mesh(data=4))
    cards = type("Cards", (), {"devices": mesh.devices.copy(), "size": mesh.size})()
    cards.devices.flat[0] = Card()
    assert peak.of_mesh(5.0, cards) == pytest.approx(20.0) and jax.device_count() == 16
