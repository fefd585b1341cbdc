"""A job of two processes, of which one is lost: the pieces that single tests and long trials share."""

import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
HEARTBEAT_SECS = 10


class Ending(NamedTuple):
    """How a job ended: its exit code, what it wrote to standard error, and when, in seconds after the fault."""

    code: int
    err: str
    secs: float

    @property
    def own_lines(self) -> list[str]:
        """What the launcher and process 0 say of an error."""
        return [line for line in self.err.splitlines() if line.startswith("mtnlg: error: ")]


def start(config, workdir, *overrides, num_processes=2, fault="", before=(), **variables) -> subprocess.Popen:
    """A job on this machine, whose processes have two devices each. before: what stands before `launch`."""
    command = [sys.executable, "-m", "mtnlg", *before, "launch", "local", f"--processes={num_processes}", "--devices=2", "--"]
    command += ["train", f"--config={config}", f"--workdir={workdir}", *overrides]
    environment = os.environ | {"MTNLG_HEARTBEAT_SECS": str(HEARTBEAT_SECS), "MTNLG_FAULT": fault} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def end(job: subprocess.Popen, timeout_secs: float = 300) -> Ending:
    """Waits for a job with a fault, from the line on that tells of it."""
    err = ""
    for line in job.stderr:
        err += line
        if "mtnlg: MTNLG_FAULT: " in line:
            break
    begin = time.monotonic()
    try:
        _, rest = job.communicate(timeout=timeout_secs)
    except subprocess.TimeoutExpired:
        job.terminate()
        raise
    return Ending(job.returncode, err + rest, time.monotonic() - begin)


def lost(ending: Ending, process: int, how: str) -> str:
    """What is wrong with an ending in which this process was lost in this way; empty where nothing is."""
    line = rf"mtnlg: error: process {process} of \d {how}; the others were ended\. Try: the same command; .*"
    if ending.code != 69:
        return f"exit code {ending.code}"
    if not re.fullmatch(line, (ending.own_lines or [""])[-1]):
        return f"it says {ending.own_lines}"
    return f"it took {ending.secs:.0f} s" if ending.secs > HEARTBEAT_SECS + 5 else ""
