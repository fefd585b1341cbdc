"""Who is named for the end of a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mtnlg.launch import verdict
from mtnlg.launch.verdict import Verdict

CURE = "; the others were ended. Try: the same command; it goes on from the last checkpoint"
KILLED, ABORTED, TERMINATED = -signal.SIGKILL, -signal.SIGABRT, -signal.SIGTERM

LOST = {
    "killed": (([KILLED, KILLED], 1, {0: "S"}), "process 1 of 2 was killed by SIGKILL"),
    "killed, told by another first": (([69, TERMINATED, KILLED], 0, {2: "S"}), "process 1 of 3 was killed by SIGTERM"),
    "killed, another aborted by jax": (([KILLED, ABORTED], 1, {}), "process 0 of 2 was killed by SIGKILL"),
    "killed, another stuck": (([74, KILLED], 0, {}), "process 1 of 2 was killed by SIGKILL"),
    "stopped": (([ABORTED, KILLED], 0, {1: "T"}), "process 1 of 2 is stopped"),
    "stopped, and a slow one": (([ABORTED, KILLED, KILLED], 0, {1: "S", 2: "T"}), "process 2 of 3 is stopped"),
    "stopped, another stuck": (([74, KILLED], 0, {1: "T"}), "process 1 of 2 is stopped"),
    "silent": (([ABORTED, KILLED], 0, {1: "S"}), "process 1 of 2 does not answer any more"),
    "silent, where states are not told": (([69, KILLED], 0, {1: ""}), "process 1 of 2 does not answer any more"),
    "all aborted": (([ABORTED, ABORTED], 1, {}), "process 1 of 2 was killed by SIGABRT"),
    "gone without a trace": (([69, 69], 0, {}), "process 0 of 2 ended with exit code 69"),
}


@pytest.mark.parametrize("name", LOST)
def test_who_was_lost(name):
    (codes, failed, silent), what = LOST[name]
    assert verdict.of(codes, failed, silent, asked_for=False) == Verdict(f"error: {what}{CURE}", 69)


OWN = {
    "an error": (([65, KILLED], 0, {1: "S"}, False), Verdict("process 0 of 2 ended with exit code 65; the others were ended", 65)),
    "stuck": (([0, 74], 1, {0: "S"}, False), Verdict("process 1 of 2 ended with exit code 74; the others were ended", 74)),
    "asked for": (([-10, -10], 0, {}, True), Verdict("process 0 of 2 was killed by SIGUSR1; the others were ended", 138)),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_nobody_s_loss(name):
    arguments, found = OWN[name]
    assert verdict.of(*arguments) == found


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_stopped_process_is_seen():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        os.kill(process.pid, signal.SIGSTOP)
        until = time.monotonic() + 60
        while verdict.state(process.pid) != "T" and time.monotonic() < until:
            time.sleep(0.01)
        assert verdict.state(process.pid) == "T"
    finally:
        process.kill()
        process.wait()
    assert verdict.state(process.pid) == ""
