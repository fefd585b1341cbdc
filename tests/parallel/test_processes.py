"""Two real processes that tell each other things; no model. What one says or raises, both know."""

import sys

import pytest

from mtnlg.launch import local
from mtnlg.parallel import processes

HEAD = """
import os, signal, sys, time
sys.path.insert(0, {path!r})
from mtnlg.launch import processes as places
from mtnlg.parallel import processes
from mtnlg.core.errors import ConfigError, DataError
signal.alarm(60)  # instead of waiting for each other for ever
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what the other one does must not keep this one from speaking
processes.join(*places.of_environment(), 60, 60)
me = int(os.environ["MTNLG_PROCESS_ID"])
"""


@pytest.fixture
def two(capfd, request, monkeypatch):
    """A function: runs a script in two processes of two devices and returns (exit code, lines of stdout, stderr)."""

    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it a line and its end are written one after the other

    def run(script: str) -> tuple[int, list[str], str]:
        code = local.run([sys.executable, "-c", HEAD.format(path=str(request.config.rootpath)) + script], 2, 2)
        out, err = capfd.readouterr()
        return code, sorted(line for line in out.splitlines() if "Gloo" not in line), err

    return run


def test_both_know_what_the_first_found_and_stop_after_the_same_step(two):
    """Process 1 is told to stop at its third step; the answer is one call late, and the same in both."""
    code, lines, _ = two("""
seen = []
print(processes.by_first(lambda: seen.append(me) or [me, "found"]), seen, processes.is_first())
processes.require_same({"a": "1", "b": "2"}, "")
stop, step = processes.Agreement(), 0
while step < 9 and not stop.agree(me == 1 and step >= 3):
    step += 1
print("stopped", step)
""")
    assert code == 0
    assert lines[0] == "[0, 'found'] [0] True"
    assert lines[1] == "[1] [0, 'found'] [] False"
    assert lines[2].startswith("[1] process 1 of 2 on ") and lines[2].endswith(": 2 of 4 cpu devices")
    assert lines[3] == "[1] stopped 4"
    assert lines[4].startswith("process 0 of 2 on ") and lines[5] == "stopped 4"


def test_what_the_first_raises_all_raise(two):
    """Then they leave as the command line does; the words of the first have reached the other before."""
    code, lines, _ = two("""
def fail():
    raise DataError("it is damaged", "there", "this")
try:
    processes.by_first(fail)
except DataError as error:
    print(type(error).__name__, error, flush=True)
    places.leave(error.exit_code)
""")
    assert code == 65
    assert [line for line in lines if "process" not in line] == [f"{n}DataError it is damaged (there). Try: this" for n in ("", "[1] ")]


def test_a_difference_is_named_by_all(two):
    code, lines, _ = two("""
try:
    processes.require_same({"same": "1", "model.d_model": str(16 + me)}, "one command")
except ConfigError as error:
    print(error, flush=True)
    places.leave(error.exit_code)
""")
    assert code == 2
    line = "the processes of the job differ: model.d_model is 17 in process 1 and 16 in process 0 (2 processes). Try: one command"
    assert [text for text in lines if "differ" in text] == [f"[1] {line}", line]


def test_a_killed_process_ends_the_job(two):
    """The other one waits in a collective for it."""
    code, _, err = two("""
stop = processes.Agreement()
while True:
    stop.agree(False)
    if me == 1:
        os.kill(os.getpid(), signal.SIGKILL)
""")
    assert code == 69
    assert "mtnlg: error: process 1 of 2 was killed by SIGKILL; the others were ended. Try: the same command; " in err


def test_alone_nothing_waits(monkeypatch):
    monkeypatch.setattr(processes, "global_state", None)
    assert processes.is_first()
    assert processes.by_first(lambda: (1, {2})) == (1, {2})
    processes.require_same({"a": "b"}, "")
    stop = processes.Agreement()
    assert [stop.agree(yes) for yes in (False, True, False)] == [False, True, False]


def test_differences_name_every_process_and_key():
    told = {0: {"a": "1", "b": "2"}, 2: {"a": "1", "b": "3"}, 1: {"a": "1", "c": "4"}}
    assert processes.differences(told) == [
        "b is None in process 1 and 2 in process 0",
        "c is 4 in process 1 and None in process 0",
        "b is 3 in process 2 and 2 in process 0",
    ]
