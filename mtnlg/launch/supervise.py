"""Starts a training command again for as long as that helps: after what passes by itself, and while checkpoints get newer."""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from mtnlg.core import manifest
from mtnlg.core.errors import TemporaryFailure
from mtnlg.launch import forward
from mtnlg.run import folder, goodput

# Exit codes after which the same command may go well. Every other one says what somebody has to mend first: 2 config, 16 and 17 numbers,
# 65 damaged and 66 missing data, 73 another writer; or that somebody has stopped it: 130. 0 is the end, but of a run that was stopped from
# elsewhere before its last step, as a machine does that is taken away: who means it stops the supervisor, or makes the file `stop`.
RESTARTED = {1: "an error that nobody foresaw", 69: "a process was lost", 74: "it was stuck", 75: "something outside failed"}
LONGEST_PAUSE_SECS = 60.0
LOOK_SECS = 0.2
GRACE_SECS = 10.0  # from each of two SIGTERMs on, before SIGKILL: `launch local` ends its processes by the second


class Ending(NamedTuple):
    """Of one start: the exit code as a shell says it, why, and whether the same command may go well."""

    code: int
    why: str
    is_passing: bool


def run(command: list[str], workdir: pathlib.Path, restarts_without_progress: int, stall_secs: float) -> int:
    """Runs `command`, and again, until it ends well or cannot; its last exit code.

    workdir: of the run; progress is a newer checkpoint in it. stall_secs: a run that has once shown a sign of life (the time of
    `workdir/lock`) and then none for so long is killed and started again; 0: never. A first signal of `forward.NUMBERS` is passed on, and
    nothing is started after it; a second one ends the command.
    """
    children: list[subprocess.Popen] = []
    newest, num_vain = newest_step(workdir), 0
    with forward.Forwarding(children) as signals:
        while True:
            children[:] = [subprocess.Popen(command, process_group=0)]
            ending = _attend(children[0], workdir / "lock", stall_secs)
            if ending.code == 0 and not _is_over(workdir):
                ending = Ending(0, "stopped from elsewhere", True)
            if signals.passed_on or not ending.is_passing:
                return ending.code
            before, newest = newest, max(newest, newest_step(workdir))
            num_vain = 0 if newest > before else num_vain
            where = f"{ending.why}, {'no step is saved yet' if newest < 0 else f'saved up to step {newest}'}"
            if num_vain == restarts_without_progress:
                what = f"{where}; given up after {num_vain} restarts without progress"
                print(f"mtnlg: error: {what} ({workdir}). Try: what the lines above say; then the same command", file=sys.stderr)
                return ending.code or TemporaryFailure.exit_code
            pause_secs = min(2.0**num_vain, LONGEST_PAUSE_SECS)
            num_vain += 1
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            attempt = f"restart {num_vain} of {restarts_without_progress} without progress, in {pause_secs:.0f} s"
            print(f"mtnlg: {now}: {where}; {attempt}", file=sys.stderr, flush=True)
            _pause(pause_secs, signals)
            if signals.passed_on:
                return ending.code


def _is_over(workdir: pathlib.Path) -> bool:
    """Whether a run that ended well has no more to do, or was told to stop."""
    return (workdir / folder.STOP).exists() or not (workdir / goodput.FILE).exists() or goodput.is_finished(workdir / goodput.FILE)


def newest_step(workdir: pathlib.Path) -> int:
    """Of the whole checkpoints of a run; -1 without any."""
    return max(manifest.whole_steps(workdir / "checkpoints"), default=-1)


def _attend(child: subprocess.Popen, sign: pathlib.Path, stall_secs: float) -> Ending:
    """Waits for its end, and ends it when its sign of life stays away."""
    begin = last = _time_of(sign)
    last_secs, is_stalled = time.monotonic(), False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LOOK_SECS)
                break
            now, secs = _time_of(sign), time.monotonic()
            if now != last:
                last, last_secs = now, secs
            elif stall_secs and last != begin and secs - last_secs > stall_secs:
                is_stalled = True
                _end(child)
                break
    except KeyboardInterrupt:
        forward.ignore()  # nothing interrupts this end
        _end(child)
    code = child.returncode
    if is_stalled:
        return Ending(69, f"no sign of life for {stall_secs:.0f} s", True)
    if code < 0:
        return Ending(128 - code, f"killed by {signal.Signals(-code).name}", True)
    return Ending(code, f"exit code {code} ({RESTARTED.get(code)})", code in RESTARTED)


def _end(child: subprocess.Popen) -> None:
    for _ in range(2):
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECS)
            return
    child.kill()
    child.wait()


def _time_of(path: pathlib.Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _pause(secs: float, signals: forward.Forwarding) -> None:
    until = time.monotonic() + secs
    while not signals.passed_on and time.monotonic() < until:
        time.sleep(LOOK_SECS)
