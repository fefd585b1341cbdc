"""Starts one training job in several processes. `local`: all of them on this machine, with virtual CPU devices if --devices is given."""

import argparse
import sys

from mtnlg.core.errors import ConfigError

STARTS = ("train",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s local --processes=N [--devices=D] -- train --config=FILE.py --workdir=DIR [--config.key=value ...]"
    parser.add_argument("where", choices=["local"], help="local: on this machine")
    parser.add_argument("--processes", type=int, required=True, help="processes of the job")
    parser.add_argument("--devices", type=int, help="virtual CPU devices of each process (default: the devices that jax finds)")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    command = rest[1:] if rest[:1] == ["--"] else rest
    for name in ("processes", "devices"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ConfigError(f"--{name}={value} must be at least 1", "command line", f"--{name}=2")
    if command and command[0].startswith("-"):
        raise ConfigError(f"unknown argument {command[0]!r}", "command line", "python -m mtnlg launch --help")
    if not command or command[0] not in STARTS:
        cure = f"-- {STARTS[0]} --config=FILE --workdir=DIR at its end"
        raise ConfigError(f"launch starts {' or '.join(STARTS)}, not {command[0] if command else 'nothing'}", "command line", cure)
    from mtnlg.launch import local

    return local.run([sys.executable, "-m", "mtnlg", *command], options.processes, options.devices)
