"""The supervisor with a child that does next to nothing, and once with a training."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mtnlg.cli.main import main
from mtnlg.launch import supervise

ROOT = pathlib.Path(__file__).parents[2]
# A run: each start does the next of its acts, (what, saves): an exit code, -signal, "wait" or "deaf"; the step that it saves, or
# -STEP that it removes.
CHILD = """
import json, os, pathlib, shutil, signal, sys, time
workdir = pathlib.Path(sys.argv[1])
acts = json.loads((workdir / "acts").read_text())
number = len(list(workdir.glob("start.*")))
(workdir / f"start.{number}").write_text(f"{os.getpid()} {time.monotonic()}")
what, saves = acts[number]
if saves is not None and saves < 0:
    shutil.rmtree(workdir / "checkpoints" / str(-saves))
elif saves is not None:
    step = workdir / "checkpoints" / str(saves)
    step.mkdir(parents=True)
    (step / "MANIFEST.json").touch()
signal.signal(signal.SIGTERM, signal.SIG_IGN if what == "deaf" else lambda *_: sys.exit(0))
(workdir / f"ready.{number}").touch()
(workdir / "lock").write_text(str(number))
if isinstance(what, int):
    sys.exit(what) if what >= 0 else os.kill(os.getpid(), -what)
while True:
    time.sleep(0.05)
"""
SUPERVISE = """
import pathlib, sys
from mtnlg.launch import supervise
supervise.LOOK_SECS, supervise.GRACE_SECS, supervise.LONGEST_PAUSE_SECS = 0.02, 0.5, 0.1
workdir = pathlib.Path(sys.argv[1])
sys.exit(supervise.run([sys.executable, "-c", sys.argv[2], str(workdir)], workdir, 3, float(sys.argv[3])))
"""


@pytest.fixture
def supervised(tmp_path):
    """A function: the supervisor of a child with these acts."""
    started = []

    def start(*acts, stall_secs=0.0) -> subprocess.Popen:
        (tmp_path / "acts").write_text(json.dumps(acts))
        command = [sys.executable, "-c", SUPERVISE, str(tmp_path), CHILD, str(stall_secs)]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    _, err = process.communicate(timeout=120)
    return process.returncode, [line.partition("Z: ")[2] or line for line in err.splitlines()]


def num_starts(workdir) -> int:
    return len(list(workdir.glob("start.*")))


@pytest.mark.parametrize("code", [0, 2, 16, 17, 65, 66, 73, 130])
def test_what_no_restart_mends_is_handed_on(supervised, tmp_path, code):
    assert ended(supervised([code, None])) == (code, [])
    assert num_starts(tmp_path) == 1


def test_what_passes_is_started_again_until_it_ends(supervised, tmp_path):
    acts = [[75, 2], [-9, 4], [69, 6], [74, 8], [1, 10], [0, 12]]
    code, lines = ended(supervised(*acts))
    why = [
        "exit code 75 (something outside failed)",
        "killed by SIGKILL",
        "exit code 69 (a process was lost)",
        "exit code 74 (it was stuck)",
    ]
    why.append("exit code 1 (an error that nobody foresaw)")
    end = "restart 1 of 3 without progress, in 0 s"
    assert lines == [f"{what}, saved up to step {2 * n}; {end}" for n, what in enumerate(why, 1)]
    assert (code, num_starts(tmp_path)) == (0, 6)


@pytest.mark.parametrize(("line", "stop", "starts"), [({"ends": True}, False, 1), ({}, True, 1), ({}, False, 2)])
def test_a_run_that_was_stopped_from_elsewhere_goes_on(supervised, tmp_path, line, stop, starts):
    """Unless it was finished, or told to stop."""
    (tmp_path / "goodput.jsonl").write_text(json.dumps({"step": 3, "at": 1.0} | line) + "\n")
    if stop:
        (tmp_path / "stop").touch()
    code, lines = ended(supervised([0, 3], [130, None]))
    assert (code, num_starts(tmp_path)) == (0 if starts == 1 else 130, starts)
    restart = "stopped from elsewhere, saved up to step 3; restart 1 of 3 without progress, in 0 s"
    assert lines == [restart] * (starts - 1)


def test_three_restarts_without_progress_are_enough(supervised, tmp_path):
    """Progress sets the count back; a checkpoint that is older than one before, which is gone now, is none."""
    acts = [[75, None], [75, None], [75, 6], [75, -6], [75, 3], [-9, None], [0, None]]
    code, lines = ended(supervised(*acts))
    assert (code, num_starts(tmp_path)) == (128 + 9, 6)
    assert [line.split("; ")[1][:9] for line in lines[:-1]] == ["restart 1", "restart 2", "restart 1", "restart 2", "restart 3"], lines
    given_up = f"given up after 3 restarts without progress ({tmp_path}). Try: what the lines above say; then the same command"
    assert lines[-1] == f"mtnlg: error: killed by SIGKILL, saved up to step 6; {given_up}"


def test_a_signal_is_passed_on_and_nothing_is_started_after_it(supervised, tmp_path):
    process = supervised(["wait", None], [0, None])
    wait_for(tmp_path / "lock")
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, [])
    assert num_starts(tmp_path) == 1


def test_a_second_signal_ends_what_is_deaf(supervised, tmp_path):
    process = supervised(["deaf", None], [0, None])
    wait_for(tmp_path / "lock")
    process.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (128 + 9, [])
    assert num_starts(tmp_path) == 1


def test_a_run_without_a_sign_of_life_is_killed_and_started_again(supervised, tmp_path):
    code, lines = ended(supervised(["deaf", 5], [0, None], stall_secs=1.0))
    assert (code, num_starts(tmp_path)) == (0, 2)
    assert lines == ["no sign of life for 1 s, saved up to step 5; restart 1 of 3 without progress, in 0 s"]


def test_after_a_restart_it_still_listens(supervised, tmp_path):
    process = supervised(["deaf", 5], ["wait", None], stall_secs=1.0)
    wait_for(tmp_path / "ready.1")
    process.send_signal(signal.SIGTERM)
    code, lines = ended(process)
    assert (code, len(lines), num_starts(tmp_path)) == (0, 1, 2)


def test_back_off_doubles(monkeypatch, tmp_path, capfd):
    (tmp_path / "acts").write_text(json.dumps([[75, None]] * 7))
    pauses = []
    monkeypatch.setattr(supervise, "_pause", lambda secs, signals: pauses.append(secs))
    assert supervise.run([sys.executable, "-c", CHILD, str(tmp_path)], tmp_path, 6, 0) == 75
    assert pauses == [1, 2, 4, 8, 16, 32]


def wait_for(path: pathlib.Path) -> None:
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)


WRONG = {
    "nothing": ([], "supervise starts train or launch, not nothing"),
    "generate": (["--", "generate", "--workdir=x"], "supervise starts train or launch, not generate"),
    "no folder": (["--", "launch", "local", "--processes=2", "--", "train"], "the command names no folder for the run"),
    "negative": (["--stall_secs=-1", "--", "train", "--workdir=x"], "--stall_secs=-1 must not be negative"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_supervised(name, capsys):
    arguments, what = WRONG[name]
    assert main(["supervise", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"mtnlg: error: {what} (command line). Try: ")


@pytest.mark.parametrize(
    "inner", [["train", "--workdir=W"], ["launch", "local", "--processes=2", "--", "train", "--workdir", "W", "--debug"]]
)
def test_the_command_is_started_as_it_stands(inner, monkeypatch):
    started = []
    monkeypatch.setattr(supervise, "run", lambda *arguments: started.append(arguments))
    assert main(["supervise", "--stall_secs=9", "--", *inner]) == 0
    assert started == [([sys.executable, "-m", "mtnlg", *inner], pathlib.Path("W"), 3, 9)]
