"""Names a process of the job that is slower than the others."""

import statistics
from collections.abc import Callable

import jax

from mtnlg.parallel import processes
from mtnlg.run.phases import Phases
from mtnlg.run.slowness import Slowness


class Stragglers:
    """Compares how long each process makes the devices wait for its batches.

    Only that time is a process's own: everything else of a step ends for all at once, in collectives. So a process is named whose disk,
    file system or CPU is slow, and not one whose device computes slowly inside a step.
    """

    def __init__(self, phases: Phases, note: Callable[[str], None], every_steps: int):
        self._phases, self._note, self._every_steps = phases, note, every_steps
        self._board, self._slowness, self._interval = processes.Board("waits"), Slowness(), 0

    def look(self) -> None:
        """At the end of an interval, in every process. Process 0 judges the one before, which the others have written down by now."""
        if jax.process_count() == 1:
            return
        self._interval += 1
        self._board.write(self._interval, statistics.fmean([*self._phases.waits][-self._every_steps :]))
        if not processes.is_first() or self._interval == 1:
            return
        told = self._board.take(self._interval - 1)
        for process in self._slowness.judge({process: secs for process, (secs, _) in told.items()}):
            secs, host = told[process]
            usual = statistics.median(secs for other, (secs, _) in told.items() if other != process)
            self._note(f"process {process} (host {host}) is slow: its batches take {secs:.2f} s a step, those of the others {usual:.2f} s")
