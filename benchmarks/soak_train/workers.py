"""Figure 3: a process of a job that is lost, whichever and however."""

import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks.figures import Figure
from benchmarks.soak_train.runs import ROOT, Inputs, differences

HEARTBEAT_SECS, GRACE_SECS = 10, 5
KINDS = {
    "killed": ("kill", 1, 69),
    "hung": ("hang", 1, 69),
    "first one killed": ("kill", 0, 69),
    "stalled": ("stall", 1, 74),
}
_MESH = ("--config.mesh.data=2", "--config.mesh.tensor=2", "--config.mesh.zero=2", f"--config.watchdog.data_secs={HEARTBEAT_SECS}")


class Loss(NamedTuple):
    """How a job ended: seconds from the fault on, its exit code, and the lines that say so."""

    secs: float
    code: int
    told: list[str]


def job(workdir: pathlib.Path, inputs: Inputs, faults: str = "") -> Loss:
    """Two processes with two devices each, until they end."""
    command = [sys.executable, "-m", "mtnlg", "launch", "local", "--processes=2", "--devices=2", "--", *inputs.command(workdir, *_MESH)]
    environment = inputs.environment(faults) | {"MTNLG_HEARTBEAT_SECS": str(HEARTBEAT_SECS)}
    begin, told = time.monotonic(), []
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams) as launched:
        for line in launched.stderr:
            if "MTNLG_FAULT" in line:
                begin = time.monotonic()
            elif "mtnlg: " in line:
                told.append(line.strip())
    return Loss(time.monotonic() - begin, launched.returncode, told)


def losses(folder: pathlib.Path, num_runs: int = 10) -> Figure:
    """Each run loses a process in every way, at steps 2 to 5, and ends with the bits of one that lost none."""
    inputs, whole, wrong, slowest = Inputs(folder), folder / "whole", [], 0.0
    job(whole, inputs)
    for number in range(num_runs):
        workdir = folder / f"run{number}"
        turned = [*KINDS.items()] * 2
        for step, (name, (kind, process, code)) in enumerate(turned[number % len(KINDS) :][: len(KINDS)], 2):
            loss = job(workdir, inputs, f"{kind}@phase:batch,step:{step},process:{process}")
            slowest = max(slowest, loss.secs)
            if loss.code != code or loss.secs > HEARTBEAT_SECS + GRACE_SECS or not any("error" in line for line in loss.told):
                wrong.append(f"{name} at step {step}: exit code {loss.code} after {loss.secs:.1f} s: {loss.told}")
        ended = job(workdir, inputs)
        if ended.code:
            wrong.append(f"started again: exit code {ended.code}: {ended.told}")
        else:
            wrong += [f"run {number}: {what} differs" for what in differences(whole, workdir)]
    total = num_runs * len(KINDS)
    measured = f"{total} losses, the slowest told {slowest:.1f} s later; " + ("; ".join(wrong) if wrong else "the same bits")
    target = f"{total} lost processes: the job ends within {HEARTBEAT_SECS + GRACE_SECS} s, and goes on with the same bits"
    return Figure(target, measured, not wrong)
