"""The place of a process in a job, as its environment says it."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from mtnlg.core.errors import ConfigError
from mtnlg.launch import processes
from mtnlg.launch.processes import Job

ROOT = pathlib.Path(__file__).parent.parent.parent
JOB = {"MTNLG_COORDINATOR": "10.0.0.1:8476", "MTNLG_NUM_PROCESSES": "4", "MTNLG_PROCESS_ID": "3"}


def test_a_job_comes_back_from_its_variables():
    assert processes.of_environment(JOB) == Job("10.0.0.1:8476", 4, 3)
    assert processes.of_environment(Job("h:1", 2, 0).environment()) == Job("h:1", 2, 0)


def test_alone_and_in_a_cluster():
    assert processes.of_environment({"MTNLG_COORDINATOR": "", "MTNLG_DISTRIBUTED": "0"}) is None
    assert processes.of_environment({"MTNLG_DISTRIBUTED": "1"}) == Job(None, None, None)


WRONG = {
    "half": ({"MTNLG_COORDINATOR": "h:1", "MTNLG_PROCESS_ID": "0"}, "MTNLG_COORDINATOR is set and MTNLG_NUM_PROCESSES is not"),
    "beyond": (JOB | {"MTNLG_PROCESS_ID": "4"}, "MTNLG_PROCESS_ID=4 is not below MTNLG_NUM_PROCESSES=4"),
    "no number": (JOB | {"MTNLG_NUM_PROCESSES": "two"}, "MTNLG_NUM_PROCESSES=two is not a whole number"),
    "no port": (JOB | {"MTNLG_COORDINATOR": "host"}, "MTNLG_COORDINATOR=host is not HOST:PORT"),
    "both": (JOB | {"MTNLG_DISTRIBUTED": "1"}, "MTNLG_DISTRIBUTED=1 asks the cluster for what MTNLG_COORDINATOR says already"),
    "neither": ({"MTNLG_DISTRIBUTED": "yes"}, "MTNLG_DISTRIBUTED=yes is neither 0 nor 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_place_that_cannot_be(name):
    environment, what = WRONG[name]
    with pytest.raises(ConfigError) as raised:
        processes.of_environment(environment)
    assert raised.value.what == what


def test_the_heartbeat():
    assert processes.heartbeat_secs({}) == 60
    assert processes.heartbeat_secs({"MTNLG_HEARTBEAT_SECS": "10"}) == 10
    for value in ("0", "ten", "-1"):
        with pytest.raises(ConfigError, match=f"MTNLG_HEARTBEAT_SECS={value} is "):
            processes.heartbeat_secs({"MTNLG_HEARTBEAT_SECS": value})


def train(tmp_path, **variables):
    command = [sys.executable, "-m", "mtnlg", "train", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60)


def test_half_a_place_is_bad_usage(tmp_path):
    done = train(tmp_path, MTNLG_NUM_PROCESSES="2")
    line = "mtnlg: error: MTNLG_NUM_PROCESSES is set and MTNLG_COORDINATOR is not (environment). "
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == line + "Try: all three, as `python -m mtnlg launch local` sets them, or none\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_port_in_use_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = {"MTNLG_COORDINATOR": f"127.0.0.1:{taken.getsockname()[1]}", "MTNLG_NUM_PROCESSES": "2", "MTNLG_PROCESS_ID": "0"}
        done = train(tmp_path, **place)
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("mtnlg: error: the job cannot start: Address already in use (127.0.0.1:")


@pytest.mark.parametrize("process", ["0", "1"])
def test_others_that_do_not_come_are_waited_for_only_so_long(tmp_path, process):
    """A coordinator that nobody can reach, and one whom nobody joins."""
    place = {"MTNLG_COORDINATOR": "127.0.0.1:1" if process == "1" else f"127.0.0.1:{free_port()}", "MTNLG_NUM_PROCESSES": "2"}
    done = train(tmp_path, **place, MTNLG_PROCESS_ID=process, MTNLG_JOIN_SECS="2")
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith(
        f"mtnlg: error: the processes of the job did not meet within 2 s ({place['MTNLG_COORDINATOR']}). Try: "
    )


def test_no_cluster_is_bad_usage(tmp_path):
    done = train(tmp_path, MTNLG_DISTRIBUTED="1")
    assert done.returncode == 2
    assert done.stderr.startswith("mtnlg: error: no cluster is found: ")
    assert done.stderr.endswith("Try: MTNLG_COORDINATOR, MTNLG_NUM_PROCESSES and MTNLG_PROCESS_ID\n")
