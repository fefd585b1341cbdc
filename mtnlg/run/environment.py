"""What a run was started with: code, packages, machine and command line, for the record in its folder."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import socket
import subprocess
import sys

import mtnlg
from mtnlg.run.redact import redact

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
_GIT_TIMEOUT_SECS = 10


def snapshot(devices: str | None = None) -> dict:
    """The environment as JSON values; devices: what the caller computes on.

    `git` is there only if this code is tracked in a checkout; secrets in the command are masked.
    """
    return {
        "mtnlg": mtnlg.__version__,
        **git_state(pathlib.Path(mtnlg.__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hostname": socket.gethostname(),
        "devices": devices,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "started": now(),
        "command": redact(sys.orig_argv),
    }


def versions() -> dict[str, str]:
    """What has to be the same in every process of a job."""
    return {"mtnlg": mtnlg.__version__, "python": platform.python_version()} | {name: str(_version(name)) for name in PACKAGES}


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def git_state(package: pathlib.Path) -> dict:
    """`{"git": {"commit": ..., "dirty": ...}}` of a package's folder, or `{}` if git is not there or does not track it.

    A package installed inside somebody else's checkout is not tracked by it. Dirty: the package's files differ from the commit.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(package, "rev-parse", "HEAD").strip()
        dirty = bool(_git(package, "status", "--porcelain", "."))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": {"commit": commit, "dirty": dirty}}


def _git(directory: pathlib.Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's GIT_DIR is not ours
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=_GIT_TIMEOUT_SECS, check=True)
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
