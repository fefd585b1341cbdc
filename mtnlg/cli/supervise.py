"""Runs a training command and starts it again when it was killed, lost a process, was stuck, or met a failure that passes."""

import argparse
import pathlib
import sys

from mtnlg.core.errors import ConfigError

STARTS = ("train", "launch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--restarts_without_progress=N] [--stall_secs=N] -- train|launch ... --workdir=DIR ..."
    help = "so many restarts one after the other without a newer checkpoint end it (default: 3)"
    parser.add_argument("--restarts_without_progress", type=int, default=3, help=help)
    help = "a run that shows no sign of life for so long is killed and started again (default: 600; 0: never)"
    parser.add_argument("--stall_secs", type=int, default=600, help=help)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    command = rest[1:] if rest[:1] == ["--"] else rest
    for name in ("restarts_without_progress", "stall_secs"):
        if (value := getattr(options, name)) < 0:
            raise ConfigError(f"--{name}={value} must not be negative", "command line", f"--{name}=0")
    if not command or command[0] not in STARTS:
        cure = f"-- {STARTS[0]} --config=FILE --workdir=DIR at its end"
        raise ConfigError(f"supervise starts {' or '.join(STARTS)}, not {command[0] if command else 'nothing'}", "command line", cure)
    from mtnlg.launch import supervise

    start = [sys.executable, "-m", "mtnlg", *command]
    return supervise.run(start, _workdir(command), options.restarts_without_progress, options.stall_secs)


def _workdir(command: list[str]) -> pathlib.Path:
    """The folder that the command names. Raises ConfigError."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workdir")
    workdir = parser.parse_known_args([argument for argument in command if argument != "--"])[0].workdir
    if not workdir:
        raise ConfigError("the command names no folder for the run", "command line", "--workdir=runs/NAME after the --")
    return pathlib.Path(workdir)
