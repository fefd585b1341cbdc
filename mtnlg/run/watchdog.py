"""Ends a run that is stuck: a thread that looks at the phases, also while the main thread waits in C for a device, a disk or a process."""

import contextlib
import faulthandler
import os
import statistics
import threading
from collections.abc import Callable

from mtnlg.core import schema
from mtnlg.core.errors import Stuck
from mtnlg.run.phases import Phases

LOOK_SECS = 1.0
# Visits of these phases are too few, or too unlike each other, to learn from; 0: no limit.
UNLEARNT_SECS = {"init": 0, "compile": 3600, "data": 600, "evaluate": 4 * 3600, "save": 3600}
# Steps are alike (a policy of NVIDIA's resiliency extension).
FEW, FEW_SECS, FACTOR, FLOOR_SECS = 5, 3600, 5, 60


class Watchdog:
    """In its `with` block, a phase that takes too long ends this process: all threads' stacks, one line on stderr, Stuck's exit code.

    Time is counted in looks, so that while the whole process is stopped (Ctrl-Z, a laptop's lid) no time passes. on_look: called at each
    look, to show that this process is alive; an OSError of it is no matter.
    """

    def __init__(self, phases: Phases, limits: schema.Watchdog, on_look: Callable[[], None] | None = None):
        self._phases, self._limits, self._on_look = phases, limits, on_look
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def limit_secs(self, phase: str) -> float:
        """How long a visit of `phase` may take now; 0: as long as it likes."""
        given = getattr(self._limits, f"{phase}_secs")
        if given is not None:
            return given
        if phase in UNLEARNT_SECS:
            return UNLEARNT_SECS[phase]
        turns = tuple(self._phases.turns)
        return max(FACTOR * statistics.median(turns), FLOOR_SECS) if len(turns) > FEW else FEW_SECS

    def _watch(self) -> None:
        seen, secs = None, 0.0
        while not self._over.wait(LOOK_SECS):
            visit = self._phases.now, self._phases.since
            seen, secs = visit, secs + LOOK_SECS if visit == seen else 0.0
            if self._on_look is not None:
                with contextlib.suppress(OSError):
                    self._on_look()
            limit_secs = self.limit_secs(visit[0])
            if 0 < limit_secs < secs:
                self._end(visit[0], secs, limit_secs)

    def _end(self, phase: str, secs: float, limit_secs: float) -> None:
        key = f"watchdog.{phase}_secs"
        how = "" if getattr(self._limits, f"{phase}_secs") is not None else ", automatic"
        what = f"the run is stuck: {phase} has taken {secs:.0f} s, longer than {key}={limit_secs:.0f}{how}"
        cure = f"the same command, which goes on from the last checkpoint; or a longer --config.{key}"
        os.write(2, b"\n")  # a bar or a half line may stand there
        faulthandler.dump_traceback(2)
        os.write(2, f"mtnlg: error: {Stuck(what, f'step {self._phases.step}', cure)}\n".encode())
        os._exit(Stuck.exit_code)
