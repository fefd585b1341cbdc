"""Faults on demand, for trying what survives them: the environment variable MTNLG_FAULT says which, where and when.

`kill@phase:save,step:7` kills this process with SIGKILL when the save of step 7 begins; `once:FILE` makes FILE first, and does nothing
where it is there already, so that a run that is started again goes on. Several are parted by `;`. Unset, a `point` asks for a variable.
"""

import errno
import os
import pathlib
import signal
import sys
import time
from typing import NamedTuple

from mtnlg.core.errors import ConfigError

VARIABLE = "MTNLG_FAULT"
PHASES = {
    "prepare": "tokens are about to be prepared",
    "restore": "the state is about to be restored or made",
    "batch": "the batch of this step is about to be sent to the devices",
    "step": "this step has been given to the devices",
    "save": "the arrays of this step are about to be written",
    "publish": "they are written, its meta and manifest are not (in a thread)",
    "rename": "its manifest is written, its name is not yet a number (in a thread)",
    "rollback": "what a rollback leaves out is written down, and nothing else of it done",
    "evaluate": "the held-out loss is about to be taken",
}
SLEEP_SECS = {"stall": 1e9, "slow": 0.3}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hang": signal.SIGSTOP}
KINDS = {
    "kill": "SIGKILL to this process",
    "term": "SIGTERM to this process",
    "hang": "SIGSTOP to this process",
    "stall": "this thread sleeps for ever",
    "slow": "it sleeps for 0.3 s",
    "full": "the error of a full disk",
    "nan": "no weight of the batch is a number",
    "garble": "every target of the batch is the last token of the vocabulary",
}


_NUMBERS = ("step", "process", "sample")


class Fault(NamedTuple):
    """What happens at a point of this phase, step and process (None: any); sample: where the batch holds this draw of the order."""

    kind: str
    phase: str | None = None
    step: int | None = None
    process: int | None = None
    sample: int | None = None
    once: str | None = None

    def is_at(self, phase: str, step: int | None, draws: range) -> bool:
        here = (phase, step, int(os.environ.get("MTNLG_PROCESS_ID", 0)))
        is_here = all(wanted in (None, found) for wanted, found in zip((self.phase, self.step, self.process), here, strict=True))
        return is_here and (self.sample is None or self.sample in draws)


def parse(text: str) -> list[Fault]:
    """Raises ConfigError for what names no fault."""
    return [_parse(part) for part in text.split(";") if part]


def _parse(text: str) -> Fault:
    kind, _, conditions = text.partition("@")
    pairs = [part.partition(":")[::2] for part in conditions.split(",") if part]
    known = kind in KINDS and all(name in Fault._fields[1:] and value for name, value in pairs) and len(dict(pairs)) == len(pairs)
    numbers = [value for name, value in pairs if name in _NUMBERS]
    if not known or not all(map(str.isdecimal, numbers)) or dict(pairs).get("phase", "step") not in PHASES:
        cure = f"KIND@phase:PHASE,step:N,process:N,sample:N,once:FILE, a kind of {', '.join(KINDS)}, a phase of {', '.join(PHASES)}"
        raise ConfigError(f"{text!r} is no fault", VARIABLE, cure)
    return Fault(kind, **{name: int(value) if name in _NUMBERS else value for name, value in pairs})


def point(phase: str, step: int | None = None, draws: range = range(0)) -> set[str]:
    """Where a fault may happen: a signal, or OSError; and the kinds that are the caller's to make.

    draws: those of the order that the batch of this step holds.
    """
    if VARIABLE not in os.environ:
        return set()
    due = [fault for fault in parse(os.environ[VARIABLE]) if fault.is_at(phase, step, draws) and _is_first(fault)]
    for fault in due:
        print(f"mtnlg: {VARIABLE}: {fault.kind} at {phase}{'' if step is None else f' of step {step}'}", file=sys.stderr, flush=True)
        if fault.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault.kind])
        time.sleep(SLEEP_SECS.get(fault.kind, 0))
        if fault.kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return {fault.kind for fault in due}


def _is_first(fault: Fault) -> bool:
    if fault.once is None:
        return True
    try:
        pathlib.Path(fault.once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
