"""Says what a run would be, before any device is asked for.

Where every parameter lies, and every collective of a step; with pipeline stages, what each of them does when: as a picture, as a table
of the schedules to choose from, and as a file to edit and give back as --config.pipeline.schedule=FILE.csv. Such a file has a line for
each thing done, tick,stage,op,microbatch,virtual_stage, all counted from 0:
  tick           all stages work in lockstep; in a tick each does one thing or nothing
  stage          who does it
  op             F forward, R forward again (train.recompute=full), B backward to the inputs, W backward to the kernels
  microbatch     for which microbatch of the step
  virtual_stage  on which part of the model; a part keeps its stage, and the next lies on the same stage or a neighbour in the ring
"""

import argparse
import math
import os
import shutil
import sys

from mtnlg.cli import runtime
from mtnlg.core import config as configs
from mtnlg.core import files, schema
from mtnlg.core.errors import ConfigError

MAX_VIRTUAL_DEVICES = 16
ASKED = "--explain-sharding, --draw=FILE.svg, --compare or --table=FILE.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s --config=FILE.py --explain-sharding [--check] [--config.key=value ...]\n"
        "       %(prog)s --config=FILE.py [--draw=FILE.svg] [--compare] [--table=FILE.csv] [--config.key=value ...]"
    )
    parser.add_argument(
        "--explain-sharding", "--explain_sharding", action="store_true", help="specs and bytes of every parameter, collectives of a step"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"compile the step for virtual CPU devices, at most {MAX_VIRTUAL_DEVICES}, and compare"
    )
    parser.add_argument("--draw", metavar="FILE.svg", help="draw a step of the full batch; with --compare under every schedule")
    parser.add_argument("--compare", action="store_true", help="time, idle time and memory of every schedule for this config")
    parser.add_argument("--table", metavar="FILE.csv", help="write the schedule as a table, to be edited and given back")


def run(options: argparse.Namespace, config_arguments: list[str]) -> int:
    config = configs.resolve(config_arguments)
    _require_sense(options)
    runtime.prepare(config)
    _only_cpus(config.mesh, options.check)
    if options.draw or options.compare or options.table:
        _show_schedule(config, options)
    return _explain_sharding(config, options.check) if options.explain_sharding else 0


def _require_sense(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that ask for nothing, or for what cannot be had."""
    if not (options.explain_sharding or options.draw or options.compare or options.table):
        raise ConfigError("plan is not told what to show", "command line", ASKED)
    if options.check and not options.explain_sharding:
        raise ConfigError("--check compares with what --explain-sharding predicts", "command line", "--explain-sharding --check")
    for name, ending in (("draw", ".svg"), ("table", ".csv")):
        path = getattr(options, name)
        if path and not path.endswith(ending):
            raise ConfigError(
                f"--{name}={path} does not end in {ending}, and nothing else is written", "command line", f"--{name}=FILE{ending}"
            )


def _show_schedule(config: schema.Config, options: argparse.Namespace) -> None:
    from mtnlg.parallel import schedule_file
    from mtnlg.plan import comparison, gantt, gantt_text, timeline

    if options.compare:
        rows = comparison.rows(config)
        shown = comparison.table(config, rows)
        panels = [(row.name + ", the config's own" * row.is_own, row.step) for row in rows]
    else:
        step = timeline.of(config)
        shown = gantt_text.text(step, shutil.get_terminal_size().columns, sys.stdout.isatty()) if options.draw else ""
        panels = [(config.pipeline.schedule, step)]
    if options.draw:
        files.write_atomic(options.draw, gantt.svg(config, panels), named_by="--draw")
    if options.table:
        schedule_file.write_csv(timeline.of(config).schedule, options.table)
    written = [f"written: {path}" for path in (options.draw, options.table) if path]
    print("\n".join([*([shown, ""] if shown else []), *written]).rstrip("\n"))


def _explain_sharding(config: schema.Config, check: bool) -> int:
    from mtnlg.plan import report

    print(report.describe(config))
    if not check:
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
