"""Where a run's time went, over all its starts: `goodput.jsonl`, and what follows from it.

A line says how many seconds each phase took since the line before; the first line of a start says at which step it went on. Between the
last line of a start and the first of the next the run was down; not so behind a last step, as nobody waits for a run that is finished.
Steps that were made again after a start are lost. What is left of `step` is productive; its share of all that time is the effective
training time ratio, ETTR (Kokolis et al. 2024, arXiv 2410.21680, section 3).
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from mtnlg.core.errors import DataError
from mtnlg.run import metrics
from mtnlg.run.metrics import Metrics
from mtnlg.run.phases import PHASES, Phases

FILE = "goodput.jsonl"
KINDS = PHASES | {
    "lost": "steps, and what belongs to them, that were made again after a restart",
    "down": "from the last line of a start to the first of the next",
}
_OF_STEPS = ("data", "step", "evaluate")  # what is lost with the steps it belongs to


class Ledger:
    """Writes a run's time down. Raises TemporaryFailure (no space), CannotWrite; DataError from a damaged file."""

    def __init__(self, path, phases: Phases, clock: Callable[[], float] = time.time):
        self._phases, self._clock = phases, clock
        self._lines = Metrics(path)
        self._lines.cut(math.inf)  # a line that a crash tore

    def begin(self, step: int) -> None:
        """The run goes on at `step`: steps after it that were made before are lost."""
        self.write(step, begins=True)

    def write(self, step: int, **more) -> None:
        """The run has made `step`."""
        secs = {f"secs/{phase}": secs for phase, secs in self._phases.taken().items()}
        self._lines.write(step=step, at=self._clock(), **more, **secs)

    def close(self) -> None:
        self._lines.close()


class Span(NamedTuple):
    """Seconds of one kind, from `begin` (seconds since the first line) on; `first` to `last`: the steps they belong to."""

    kind: str
    begin: float
    secs: float
    first: int
    last: int


class Account(NamedTuple):
    """spans: one after the other, without a gap. num_starts: also returns to an earlier step within a start."""

    spans: list[Span]
    num_starts: int

    @property
    def secs(self) -> dict[str, float]:
        """Of every kind."""
        return {kind: math.fsum(span.secs for span in self.spans if span.kind == kind) for kind in KINDS}

    @property
    def ettr(self) -> float:
        """Productive seconds over all; not a number where nothing has happened yet."""
        total = math.fsum(self.secs.values())
        return self.secs["step"] / total if total else math.nan


def read(path) -> Account:
    """What a run's `goodput.jsonl` says. Raises MissingInput, DataError."""
    try:
        return _account(metrics.read(path))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"damaged line of where the time went: {error!r}", str(path), "mend or delete this line") from None


def _account(lines: list[dict]) -> Account:
    spans, total = [], 0.0
    before = {"step": 0, "ends": True}
    for line in lines:
        told = {phase: line[f"secs/{phase}"] for phase in PHASES if f"secs/{phase}" in line}
        room = math.fsum(told.values()) if before.get("ends") else max(line["at"] - before["at"], 0.0)
        if line.get("begins"):
            spans = _without(spans, line["step"])
            told = {"down": room - math.fsum(told.values())} | told
        spans += _filling(told, total, room, before["step"], line["step"])
        total, before = total + room, line
    return Account(spans, sum("begins" in line for line in lines))


def is_finished(path) -> bool:
    """Whether the run has made its last step. Raises MissingInput, DataError."""
    return any(line.get("ends", False) for line in metrics.read(path)[-1:])


def _filling(told: dict[str, float], begin: float, room: float, first: int, last: int) -> list[Span]:
    """One span after the other, stretched or shrunk so that they fill the time there was by the wall's clock."""
    told = {kind: secs for kind, secs in told.items() if secs > 0}
    scale, spans = room / (math.fsum(told.values()) or 1.0), []
    for kind, secs in told.items() if room > 0 else ():
        spans.append(Span(kind, begin, secs * scale, first, last))
        begin += secs * scale
    return spans


def _without(spans: list[Span], step: int) -> list[Span]:
    """The spans when a start goes on at `step`: what came after it is lost."""
    found = []
    for span in spans:
        if span.kind not in _OF_STEPS or span.last <= step:
            found.append(span)
            continue
        kept = max(step - span.first, 0) / max(span.last - span.first, 1)
        if kept:
            found.append(span._replace(secs=span.secs * kept, last=step))
        first = max(step, span.first) if span.kind == "step" else span.last  # no step was made in what only belongs to them
        found.append(Span("lost", span.begin + span.secs * kept, span.secs * (1 - kept), first, span.last))
    return found


def table(account: Account) -> list[tuple[str, str, str, str]]:
    """(kind, seconds, share, what it is), the largest first."""
    secs, total = account.secs, math.fsum(account.secs.values()) or 1.0
    rows = sorted((kind for kind in KINDS if secs[kind]), key=secs.get, reverse=True)
    return [(kind, f"{secs[kind]:,.1f}", f"{100 * secs[kind] / total:.1f} %", KINDS[kind]) for kind in rows]
