"""Says what a run would be, before any device is asked for: where every parameter lies, and every collective of a step."""

import argparse
import math
import os

from mtnlg.cli import runtime
from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError

MAX_VIRTUAL_DEVICES = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mtnlg plan --config=FILE.py --explain-sharding [--check] [--config.key=value ...]"
    parser.add_argument(
        "--explain-sharding", "--explain_sharding", action="store_true", help="specs and bytes of every parameter, collectives of a step"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"compile the step for virtual CPU devices, at most {MAX_VIRTUAL_DEVICES}, and compare"
    )


def run(options: argparse.Namespace, config_arguments: list[str]) -> int:
    config = configs.resolve(config_arguments)
    if not options.explain_sharding:
        raise ConfigError("mtnlg plan can explain the sharding so far, and nothing else", "command line", "--explain-sharding")
    runtime.prepare(config)
    _only_cpus(config.mesh, options.check)
    from mtnlg.plan import report

    print(report.describe(config))
    if not options.check:
        return 0
    found, as_it_should = report.check(config)
    print(f"\n{found}")
    return 0 if as_it_should else 1


def _only_cpus(mesh: schema.Mesh, check: bool) -> None:
    """No accelerator is touched; for a check there are as many virtual CPU devices as the mesh has. Before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if not check:
        return
    devices = math.prod((mesh.replica, mesh.pipe, mesh.data, mesh.context, mesh.tensor))
    if devices > MAX_VIRTUAL_DEVICES:
        what = f"a mesh of {devices} devices is too large for the virtual ones, of which there are {MAX_VIRTUAL_DEVICES} at most"
        raise ConfigError(what, "--check", "smaller degrees of mesh.*, or no --check")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(devices))
