"""Going back before a spike of the loss and round the samples it came from, as was done by hand for PaLM (Chowdhery et al. 2022, 5.1).

What is left out is written into the run's folder before anything else is done, so that a kill at any moment changes nothing: at each
start the checkpoints that have read of it are set aside, and the run goes on from the one before.
"""

import json
import pathlib
from typing import NamedTuple

from mtnlg.core import files, ranges, schema
from mtnlg.core.errors import DataError, NumericalError
from mtnlg.core.ranges import Range
from mtnlg.data.skips import Skips
from mtnlg.train import schedule

FILE = "skips.jsonl"


class Skip(NamedTuple):
    """One rollback: these draws are left out, because the loss stood out from `spike` on, which was known at step `seen`."""

    draws: Range
    spike: int
    seen: int


def plan(config: schema.Config, known: Skips, spike: tuple[int, ...]) -> Skip:
    """For the steps of a spike: the samples of guard.skip_steps steps, at least up to these, from guard.rollback_steps before them on."""
    last_kept = max(spike[0] - 1 - config.guard.rollback_steps, 0)
    last_left_out = max(last_kept + config.guard.skip_steps, spike[-1])
    first, end = (schedule.position_at(config, step).samples for step in (last_kept, last_left_out))
    return Skip(Range(int(known.draws(first)), int(known.draws(end - 1)) + 1), spike[0], spike[-1])


def read(folder: pathlib.Path) -> list[Skip]:
    """All rollbacks of a run. Raises DataError."""
    path = folder / FILE
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            entry = json.loads(line)
            found.append(Skip(ranges.parse(entry["draws"]), int(entry["spike"]), int(entry["seen"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError("damaged line of skipped samples", f"{path}:{number}", "mend it from the log of the run") from None
    return found


def record(folder: pathlib.Path, skip: Skip, most: int) -> None:
    """Adds one, for good. Raises NumericalError when there are `most` already; TemporaryFailure, CannotWrite."""
    before = read(folder)
    if len(before) >= most:
        what = f"the loss stands out from step {skip.spike} on, and the run has gone back {most} times already (guard.max_rollbacks)"
        cure = "a lower --config.optimizer.learning_rate; what is saved is untouched"
        raise NumericalError(what, str(folder / FILE), cure)
    lines = [json.dumps({"draws": str(one.draws), "spike": one.spike, "seen": one.seen}) for one in (*before, skip)]
    files.write_atomic(folder / FILE, "".join(f"{line}\n" for line in lines))
