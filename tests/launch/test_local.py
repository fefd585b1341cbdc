"""The launcher with children that do next to nothing: what they get, what comes back, and that none outlives a failure."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mtnlg.launch import local, verdict

SHOW = "import os, sys; print(*[os.environ.get(name) for name in sys.argv[1:]])"
GRACE_SECS = 1.5  # less than a user gets
LAUNCH = f"""
import sys
from mtnlg.launch import local
local.GRACE_SECS = {GRACE_SECS}
sys.exit(local.run([sys.executable, "-c", sys.argv[1]], 2))
"""
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
{action}
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def whole_lines(monkeypatch):
    """With it a line and its end are written one after the other, and another process may come between."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def launch(script: str) -> subprocess.Popen:
    """The launcher, with two children that run `script`, in a process group of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", LAUNCH, script], process_group=0, **pipes)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_running(pid: int) -> bool:
    """Not gone, and no zombie that nobody has asked after."""
    return verdict.state(pid) not in ("", "Z")


def test_each_process_knows_its_place(capfd):
    names = ["MTNLG_PROCESS_ID", "MTNLG_NUM_PROCESSES", "MTNLG_COORDINATOR", "JAX_COORDINATOR_BIND_ADDRESS"]
    assert local.run([sys.executable, "-c", SHOW, *names], 3) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    address = lines[0].split()[2]
    assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
    assert lines == [f"0 3 {address} {address}", f"[1] 1 3 {address} {address}", f"[2] 2 3 {address} {address}"]


def test_devices_of_each_process_and_no_second_opinion(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b=2")
    monkeypatch.setenv("MTNLG_DISTRIBUTED", "1")
    show = [sys.executable, "-c", SHOW, "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "XLA_FLAGS", "MTNLG_DISTRIBUTED"]
    assert local.run(show, 1, num_devices=4) == 0
    assert capfd.readouterr().out == "4 cpu --xla_a=1 --xla_b=2 None\n"


def test_without_devices_the_flags_stay(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    local.run([sys.executable, "-c", SHOW, "XLA_FLAGS"], 1)
    assert capfd.readouterr().out == "--xla_force_host_platform_device_count=8\n"


def test_lines_of_others_are_marked_on_both_streams():
    script = "import sys; print('a\\n  b'); print('x', end='', file=sys.stderr)"
    launched = launch(script)
    out, err = launched.communicate()
    assert sorted(out.splitlines()) == ["  b", "[1]   b", "[1] a", "a"]
    assert err.count("[1] x\n") == 1 and err.count("x") == 2


def test_what_jax_says_as_it_aborts_is_not_repeated():
    said = [
        "a line",
        "F1128 16:56:04.255382   21700 client.h:80] Terminating process because the JAX distributed service detected fatal errors.",
        "RPC: /xla.coordination.CoordinationService/Heartbeat",
        "    @     0x7fcf68a40634  absl::log_internal::LogMessage::SendToLog()",
        "mtnlg: error: ours",
    ]
    _, err = launch(f"import sys; sys.stderr.write({chr(10).join(said)!r})").communicate()
    assert sorted(err.splitlines()) == ["[1] a line", "[1] mtnlg: error: ours", "a line", "mtnlg: error: ours"]


def test_a_stopped_one_is_named_when_the_other_is_aborted():
    """As jax aborts it, after the heartbeat."""
    script = "import os, time\nif os.environ['MTNLG_PROCESS_ID'] == '1': os.kill(os.getpid(), 19)\ntime.sleep(1)\nos.abort()"
    launched = launch(script)
    _, err = launched.communicate(timeout=60)
    cure = "Try: the same command; it goes on from the last checkpoint"
    assert (launched.returncode, err) == (69, f"mtnlg: error: process 1 of 2 is stopped; the others were ended. {cure}\n")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_no_process_outlives_a_launcher_that_is_killed():
    script = f"""
import os, sys, time
sys.path.insert(0, {os.getcwd()!r})
from mtnlg.launch import processes
processes.end_with_launcher()
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""
    launched = launch(script)
    pids = [int(launched.stdout.readline().split()[-1]) for _ in range(2)]
    launched.kill()
    launched.wait()
    until = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("failing", ["0", "1"])
def test_one_that_fails_ends_the_others_and_its_code_is_returned(failing):
    action = f"if os.environ['MTNLG_PROCESS_ID'] == '{failing}': time.sleep(0.5); sys.exit(65)"
    start = time.monotonic()
    launched = launch(STUBBORN.format(action=action))
    out, err = launched.communicate()
    assert launched.returncode == 65
    assert err == f"mtnlg: process {failing} of 2 ended with exit code 65; the others were ended\n"
    assert GRACE_SECS <= time.monotonic() - start < GRACE_SECS + 5  # the other one ignored SIGTERM
    assert not any(is_alive(int(pid)) for pid in re.findall(r"pid (\d+)", out))


def test_a_killed_one_is_named_with_its_signal():
    launched = launch("import os, time\nif os.environ['MTNLG_PROCESS_ID'] == '1': os.kill(os.getpid(), 9)\ntime.sleep(60)")
    _, err = launched.communicate()
    assert launched.returncode == 69
    cure = "Try: the same command; it goes on from the last checkpoint"
    assert err == f"mtnlg: error: process 1 of 2 was killed by SIGKILL; the others were ended. {cure}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_every_process_once_and_may_end_well(number):
    """A terminal's Ctrl-C goes to the launcher's whole process group, to which the others therefore do not belong."""
    script = f"""
import os, signal, sys, time
got = []
signal.signal({int(number)}, lambda *_: got.append(1))
print("ready", os.getpgrp() == os.getpid(), flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.3)
print("got", len(got))
"""
    launched = launch(script)
    assert sorted(launched.stdout.readline() for _ in range(2)) == ["[1] ready True\n", "ready True\n"]
    os.killpg(launched.pid, number)
    out, err = launched.communicate()
    assert (launched.returncode, err) == (0, "")
    assert sorted(out.splitlines()) == ["[1] got 1", "got 1"]


def test_a_later_second_signal_ends_what_hangs():
    launched = launch(STUBBORN.format(action="signal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)"))
    pids = []
    for _ in range(4):
        line = launched.stdout.readline()
        pids += map(int, re.findall(r"pid (\d+)", line))
    launched.send_signal(signal.SIGINT)
    time.sleep(0.2)
    launched.send_signal(signal.SIGINT)  # the same wish, said again
    time.sleep(1.3)
    assert launched.poll() is None
    launched.send_signal(signal.SIGINT)
    launched.communicate(timeout=GRACE_SECS + 5)
    assert launched.returncode not in (0, None)
    assert len(pids) == 2 and not any(map(is_alive, pids))


def test_nobody_reading_does_not_block_the_others():
    """More lines than a pipe holds; 120 is Python's word for a standard output that is gone at the end."""
    launched = launch("import os\nif os.environ['MTNLG_PROCESS_ID'] == '1':\n for _ in range(20_000): print('x' * 20)")
    launched.stdout.readline()
    launched.stdout.close()
    assert launched.wait(timeout=20) in (0, 120)
