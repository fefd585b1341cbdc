"""Who brought a job down, from how its processes ended: those that are left say only that somebody is gone."""

import pathlib
import signal
from typing import NamedTuple

from mtnlg.core.errors import Stuck, WorkerLost

# How a process ends that has lost another: by its own word, or by jax, which aborts it.
_HEARSAY = (WorkerLost.exit_code, Stuck.exit_code, -signal.SIGABRT)


class Verdict(NamedTuple):
    """What people are told, and the exit code of the job."""

    line: str
    code: int


def of(codes: list[int], failed: int, silent: dict[int, str], asked_for: bool) -> Verdict:
    """About a job in which `failed` was the first to end with another code than 0.

    codes: of each process, -n for signal n; silent: those that had to be ended, with what they were at; asked_for: a signal was passed on
    to all, and what it does is nobody's loss.
    """
    culprit = failed if asked_for else _culprit(codes, failed, silent)
    who, code = f"process {culprit} of {len(codes)}", codes[culprit]
    if culprit in silent:
        how = "is stopped" if silent[culprit] == "T" else "does not answer any more"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    else:
        how = f"ended with exit code {code}"
    what = f"{who} {how}; the others were ended"
    if asked_for or 0 <= code != WorkerLost.exit_code:
        return Verdict(what, code if code >= 0 else 128 - code)  # as a shell says it
    lost = WorkerLost(what, "", "the same command; it goes on from the last checkpoint")
    return Verdict(f"error: {lost}", lost.exit_code)


def _culprit(codes: list[int], failed: int, silent: dict[int, str]) -> int:
    """Where the first ending is hearsay: whom a signal killed, else who is stopped, else who is silent."""
    if codes[failed] not in _HEARSAY:
        return failed
    killed = [number for number, code in enumerate(codes) if code < 0 and code != -signal.SIGABRT and number not in silent]
    stopped = [number for number, state in silent.items() if state == "T"]
    others = [] if codes[failed] == Stuck.exit_code else [*silent]  # the one that is stuck may well wait for nobody
    return [*killed, *stopped, *others, failed][0]


def state(pid: int) -> str:
    """The letter by which Linux says what a process is at: R, S, D, T (stopped), Z, ...; empty where it is not told."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""
