"""Runs a function over all records of a stage's inputs, in several processes, into a folder of parts; killed, it goes on.

The records are handed out in batches of about BATCH_BYTES, and batches in parts of about `part_bytes`, both cut without regard to who
does the work and when: the bytes written are the same for any number of workers, and with or without a kill in between.
"""

import hashlib
import os
import pathlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mtnlg.core import files, lock
from mtnlg.core.errors import CannotWrite, DataError
from mtnlg.factory import folder, workers
from mtnlg.factory.documents import Record
from mtnlg.factory.folder import Journal
from mtnlg.factory.inputs import Inputs, Place
from mtnlg.factory.tally import FAILED, Tally

BATCH_BYTES = 1_000_000  # of records
PART_BYTES = 64_000_000  # of records: what a kill may cost
MAX_FAILED = 100  # of a part, and the half of its records: what fails more often is at fault itself


@dataclass(frozen=True)
class Batch:
    """first: how many records the inputs have before it; with faults and all, so that a record's number is its name in every pass."""

    first: int
    records: list[Record]


@dataclass
class Result:
    """Of a batch: what is written, and what was counted."""

    payload: bytes = b""
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Machine:
    """How to run: num_workers processes; progress: tell on stderr what is done."""

    num_workers: int = 1
    part_bytes: int = PART_BYTES
    progress: bool = True

    def say(self, line: str) -> None:
        if self.progress:
            print(line, file=sys.stderr, flush=True)


def run(
    path: pathlib.Path,
    what: dict,
    inputs: Inputs,
    work: Callable,
    suffix: str,
    machine: Machine,
    prepare: Callable[[], Tally] = Tally,
    finish: Callable[[list[dict]], list[dict]] = list,
    whole: pathlib.Path | None = None,
) -> Tally:
    """Writes what `work` makes of each Batch (a Result) into `path`, in parts named part-NNNNN`suffix`, and `stage.json` at the end.

    what: {'stage': name, 'options': {...}}, by which the folder is known, with the inputs. work: pickled once for each worker.
    prepare: called before the first batch, each time that the stage starts and has not ended; what it counts is added. It runs a stage's
    inner passes, in folders inside `path`; `whole` is then the folder of the stage, which an error says to delete. finish: gets what is
    known of the parts, and gives back what is known of the files that replace them, a `folder.part` each; it may be called again after a
    kill. Parts that it does not name are deleted when `stage.json` is there.
    Raises what `Journal`, `work`, `prepare` and `finish` raise; CannotWrite when another process writes there.
    """
    inputs.require_outside(path)
    files.make_folder(path)
    with lock.held(path / "lock", lambda owner: _refuse_busy(path, owner)):
        journal = Journal(path, what | {"inputs": inputs.identity()}, whole)
        if journal.is_done:
            machine.say(f"{path}: already there, used as it is")
            total = Tally(**folder.read(path)["tally"])
        else:
            total = _go_on(journal, what["stage"], inputs, work, suffix, machine, prepare, finish)
        _delete_replaced(path, suffix)
        return total


def run_alone(path: pathlib.Path, what: dict, machine: Machine, make: Callable[[Tally], tuple[int, list[dict]]]) -> Tally:
    """A stage that works in this process alone; killed, it begins again.

    what: as in `run`, with the inputs. make: counts into a tally, and gives (records read, a `folder.part` for each file it wrote).
    Raises what `Journal` and `make` raise; CannotWrite when another process writes there.
    """
    files.make_folder(path)
    with lock.held(path / "lock", lambda owner: _refuse_busy(path, owner)):
        journal = Journal(path, what)
        if journal.is_done:
            machine.say(f"{path}: already there, used as it is")
            return Tally(**folder.read(path)["tally"])
        start, tally = time.monotonic(), Tally()
        num_records, parts = make(tally)
        journal.end(parts, {"records": num_records, "seconds": round(time.monotonic() - start, 1), "tally": tally.as_json()})
        return tally


def _delete_replaced(path: pathlib.Path, suffix: str) -> None:
    """The parts in whose place `finish` has put other files."""
    kept = {part["name"] for part in folder.read(path)["parts"]}
    with files.writing(path):
        for left in path.glob(f"part-*{suffix}*"):
            if left.name not in kept:
                left.unlink()


def _refuse_busy(path: pathlib.Path, owner: str) -> None:
    """Raises CannotWrite."""
    raise CannotWrite(f"{owner} is writing there", str(path), "waiting for it, or another --output")


def _go_on(
    journal: Journal, name: str, inputs: Inputs, work: Callable, suffix: str, machine: Machine, prepare: Callable, finish: Callable
) -> Tally:
    start = time.monotonic() - sum(part["seconds"] for part in journal.parts) - _seconds_before(journal.path)
    total, of_parts = prepare(), journal.tally
    place = Place(*journal.parts[-1]["place"]) if journal.parts else Place()
    if journal.parts:
        machine.say(f"{journal.path}: goes on behind part {len(journal.parts)}, record {place.number}")
    ends: list[Place] = []  # of batches on their way
    sizes: list[int] = []
    part = _Part(journal.part_path(suffix))
    with _bar(name, inputs, machine) as bar:
        for result in workers.ordered(work, _batches(inputs, place, machine.part_bytes, ends, sizes), machine.num_workers):
            place, num_bytes = ends.pop(0), sizes.pop(0)
            part.add(result, num_bytes)
            bar.update(num_bytes)
            if part.num_read >= machine.part_bytes:
                of_parts.add(part.close(journal, place))
                part = _Part(journal.part_path(suffix))
    if part.num_read:
        of_parts.add(part.close(journal, place))
    else:
        part.discard()
    total.add(of_parts)
    journal.write_quarantine()
    _require_documents(total, place.number, journal.path)
    parts = finish(journal.parts)
    journal.end(parts, {"records": place.number, "seconds": round(time.monotonic() - start, 1), "tally": total.as_json()})
    return total


def _seconds_before(path: pathlib.Path) -> float:
    """Of a stage's inner passes that have ended, whose folders lie in its own."""
    return sum(folder.read(done.parent)["seconds"] for done in path.glob(f"*/{folder.DONE}"))


def _batches(inputs: Inputs, start: Place, part_bytes: int, ends: list, sizes: list) -> Iterator[Batch]:
    """Batches from `start` on, which is where a part begins; `ends` and `sizes` get the place behind each, and its bytes."""
    first, records, size, place = start.number, [], 0, start

    def batch() -> Batch:
        ends.append(place)
        sizes.append(size)
        return Batch(first, records)

    for place, record in inputs.records(start):
        records.append(record)
        size += len(record.content) + 1  # a part of nothing but faults ends too
        if size >= min(BATCH_BYTES, part_bytes):
            yield batch()
            first, records, size = place.number, [], 0
    if records:
        yield batch()


class _Part:
    """A part that is being written, under a name that it bears until it is whole."""

    def __init__(self, path: pathlib.Path):
        self._path, self._hash, self._size, self.num_read, self._tally = path, hashlib.sha256(), 0, 0, Tally()
        self._start = time.monotonic()
        with files.writing(path):
            self._file = open(files.draft(path), "wb")  # noqa: SIM115 (closed in close and discard)

    def add(self, result: Result, num_read: int) -> None:
        with files.writing(self._path, len(result.payload)):
            self._file.write(result.payload)
        self._hash.update(result.payload)
        self._size += len(result.payload)
        self.num_read += num_read
        self._tally.add(result.tally)

    def close(self, journal: Journal, place: Place) -> Tally:
        before = journal.parts[-1]["place"][-1] if journal.parts else 0
        _require_working(self._tally, place.number - before, self._path)
        with files.writing(self._path, self._size):
            files.sync(self._file)
            self._file.close()
            os.replace(files.draft(self._path), self._path)
            files.sync_folder(self._path.parent)
        known = folder.part(self._path.name, self._hash.hexdigest(), self._size)
        journal.add(known | {"place": place, "seconds": round(time.monotonic() - self._start, 3), "tally": self._tally.as_json()})
        return self._tally

    def discard(self) -> None:
        self._file.close()
        files.draft(self._path).unlink()


def _require_working(tally: Tally, num_records: int, path: pathlib.Path) -> None:
    """Raises DataError when a step fails so often that the fault cannot lie with the documents. The part is then made again."""
    if tally.num_failed > max(MAX_FAILED, num_records / 2):
        reason, _ = tally.counts["unreadable"].most_common(1)[0]
        (shown, *_) = tally.samples[FAILED]
        often = f"most often: {reason}; at {shown['where']}: {shown['error']}"
        what = f"the stage failed over {tally.num_failed} of {num_records} records, {often}"
        raise DataError(what, str(path), "mending that line of code; the same command then goes on here")


def _require_documents(total: Tally, num_records: int, path: pathlib.Path) -> None:
    """Raises DataError when not one record could be read: then not the records are at fault, but what was asked for."""
    reasons = total.counts.get("unreadable", Counter())
    if num_records and reasons.total() == num_records:
        reason, number = reasons.most_common(1)[0]
        cure = f"other inputs or options, after deleting {path}"
        raise DataError(f"none of {num_records} records can be read, {number} of them: {reason}", str(path / folder.QUARANTINE), cure)


def _bar(name: str, inputs: Inputs, machine: Machine):
    """A progress bar in MB/s on a terminal, and a silent one elsewhere."""
    from tqdm import tqdm

    return tqdm(total=inputs.num_bytes, desc=name, unit="B", unit_scale=True, leave=False, disable=None if machine.progress else True)
