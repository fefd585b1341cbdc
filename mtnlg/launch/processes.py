"""Which process of a job this one is, as the environment says: set by `mtnlg launch`, by a scheduler or by hand."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from mtnlg.core.errors import ConfigError

CLUSTER = "MTNLG_DISTRIBUTED"  # 1: jax asks the cluster (Slurm, Open MPI, a TPU pod) for the rest
COORDINATOR, NUM_PROCESSES, PROCESS_ID = "MTNLG_COORDINATOR", "MTNLG_NUM_PROCESSES", "MTNLG_PROCESS_ID"
JOIN_SECS = "MTNLG_JOIN_SECS"  # how long processes wait for each other at the start
HEARTBEAT_SECS = "MTNLG_HEARTBEAT_SECS"  # a process of which nothing is heard for so long is lost, and with it the job
LAUNCHER = "MTNLG_LAUNCHER"  # the process that started this one and ends it
_LAST_SECS = 1.0
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_PLACE = (COORDINATOR, NUM_PROCESSES, PROCESS_ID)


class Job(NamedTuple):
    """A place in a job of several processes. All none: the cluster knows it.

    coordinator: HOST:PORT, where process 0 listens. process_id counts from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def environment(self) -> dict[str, str]:
        """The variables that `of_environment` reads this back from."""
        return dict(zip(_PLACE, map(str, self), strict=True))


def of_environment(environment: Mapping[str, str] = os.environ) -> Job | None:
    """The job that this process belongs to; None for a process on its own. Raises ConfigError for an environment that is half set."""
    given = [name for name in _PLACE if environment.get(name)]
    cluster = environment.get(CLUSTER, "0")
    if cluster not in ("0", "1"):
        raise ConfigError(f"{CLUSTER}={cluster} is neither 0 nor 1", "environment", f"{CLUSTER}=1")
    if cluster == "1" and given:
        raise ConfigError(f"{CLUSTER}=1 asks the cluster for what {given[0]} says already", "environment", "one of them")
    if not given:
        return Job() if cluster == "1" else None
    if missing := [name for name in _PLACE if name not in given]:
        cure = "all three, as `python -m mtnlg launch local` sets them, or none"
        raise ConfigError(f"{given[0]} is set and {missing[0]} is not", "environment", cure)
    job = Job(environment[COORDINATOR], _number(environment, NUM_PROCESSES), _number(environment, PROCESS_ID))
    if not 0 <= job.process_id < job.num_processes:
        what = f"{PROCESS_ID}={job.process_id} is not below {NUM_PROCESSES}={job.num_processes}"
        raise ConfigError(what, "environment", f"{PROCESS_ID}=0 for the first process")
    host, _, port = job.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"{COORDINATOR}={job.coordinator} is not HOST:PORT", "environment", f"{COORDINATOR}=HOST_OF_PROCESS_0:8476")
    return job


def join_secs(environment: Mapping[str, str] = os.environ) -> int:
    """Seconds to wait for the other processes of the job. Raises ConfigError."""
    return _number(environment, JOIN_SECS) if environment.get(JOIN_SECS) else 300


def heartbeat_secs(environment: Mapping[str, str] = os.environ) -> int:
    """Seconds after which a silent process is given up. Raises ConfigError."""
    secs = _number(environment, HEARTBEAT_SECS) if environment.get(HEARTBEAT_SECS) else 60
    if secs < 1:
        raise ConfigError(f"{HEARTBEAT_SECS}={secs} is not above 0", "environment", f"{HEARTBEAT_SECS}=60")
    return secs


def end_with_launcher() -> None:
    """On Linux a process whose launcher is killed ends too: otherwise it would hold the run's folder, and wait for others for ever."""
    launcher = os.environ.get(LAUNCHER)
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):
            os.kill(os.getpid(), signal.SIGKILL)


def in_job() -> bool:
    """Whether the environment says anything of a job."""
    return any(os.environ.get(name) for name in (CLUSTER, *_PLACE))


def leave(code: int) -> NoReturn:
    """Ends a process of a job that failed, without Python's own way out: there jax waits for the others, who may wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get(PROCESS_ID, "0") == "0":
        time.sleep(_LAST_SECS)  # jax ends the others in the same moment: first let them say what they have to say
    os._exit(code)


def _number(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise ConfigError(f"{name}={environment[name]} is not a whole number", "environment", f"{name}=2")
    return int(environment[name])
