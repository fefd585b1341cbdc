"""A stage that makes documents of documents: what a step says of each is written, counted and, a little of it, kept to be looked at."""

import contextlib
import dataclasses
import functools
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Protocol

from mtnlg.core.errors import MtnlgError
from mtnlg.factory import documents, passes
from mtnlg.factory.documents import Drop, Record, Unreadable
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Batch, Machine, Result
from mtnlg.factory.tally import FAILED, Tally

SUFFIX = ".jsonl.zst"
_ROOT = pathlib.Path(__file__).parents[1]


class Step(Protocol):
    """Made once in each worker. May count and sample what it likes in the tally of the batch."""

    def __call__(self, document: dict, tally: Tally) -> list[dict] | Drop:
        """The documents that take this one's place, or why it is left out."""


class DocumentWork:
    """A step over the documents of a batch, as lines of JSONL in a zstd frame of their own. What a step cannot digest is set aside.

    is_numbered: the step gets the number of the record first, as in `Batch`.
    """

    def __init__(self, make_step: Callable, parse: Callable[[Record], dict] = documents.parse, is_numbered: bool = False):
        self._make_step, self._parse, self._is_numbered = make_step, parse, is_numbered
        self._step: Callable | None = None

    def __call__(self, batch: Batch) -> Result:
        import zstandard

        self._step = self._step or self._make_step()
        tally, lines = Tally(), []
        for number, record in enumerate(batch.records, batch.first):
            step = functools.partial(self._step, number) if self._is_numbered else self._step
            with setting_aside(tally, record.where, record.content):
                lines += [documents.line(one) for one in apply(step, self._parse(record), tally)]
        return Result(zstandard.compress(b"".join(lines), 3) if lines else b"", tally)


@contextlib.contextmanager
def setting_aside(tally: Tally, where: str, content: bytes) -> Iterator[None]:
    """Around the work on one record: if it fails, this one is set aside and the others do not suffer. Raises MtnlgError only."""
    try:
        yield
    except Unreadable as error:
        tally.set_aside(where, str(error), _begins(content))
    except MtnlgError:
        raise
    except Exception as error:
        tally.set_aside(where, f"{FAILED}{type(error).__name__} in {place(error)}", _begins(content))
        tally.sample(FAILED, {"where": where, "error": str(error)})


def apply(step: Step, document: dict, tally: Tally) -> list[dict]:
    """The documents that a step makes of one, counted. Raises what the step raises."""
    source, size = document["source"], len(document["text"].encode())
    tally.count("documents read", source)
    tally.count("bytes read", source, size)
    made = step(document, tally)
    if isinstance(made, Drop):
        tally.count("dropped", made.reason)
        tally.sample(f"dropped, {made.reason}", {"id": document["id"], "text": document["text"]})
        return []
    for one in made:
        tally.count("documents written", source)
        tally.count("bytes written", source, len(one["text"].encode()))
        tally.count("length", _power_of_two(len(one["text"])))
    return made


def run(path, stage: str, options, inputs: Inputs, make_step: Callable[[], Step], machine: Machine, **known) -> Tally:
    """Runs a step over all documents of the inputs into the folder `path`; options: a frozen dataclass.

    known: what the folder is known by beside, as the content of a file that an option names. Raises what `passes.run` does.
    """
    what = {"stage": stage, "options": dataclasses.asdict(options)} | known
    return passes.run(pathlib.Path(path), what, inputs, DocumentWork(make_step), SUFFIX, machine)


def _begins(content: bytes) -> str:
    return content[: 4 * documents.SHOWN_CHARS].decode(errors="backslashreplace")


def place(error: Exception) -> str:
    """The line of code that raised; outside mtnlg, the last one in the file that mtnlg called, and not in what that file calls."""
    lines = [(pathlib.Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = max((number for number, (file, _) in enumerate(lines) if file.is_relative_to(_ROOT)), default=-1)
    called = lines[ours + 1 :] or lines[-1:]
    file, line = next(one for one in reversed(called) if one[0] == called[0][0])
    return f"{file.name}:{line}"


def _power_of_two(length: int) -> str:
    """The characters that texts of about this length have at least, as a key that sorts."""
    return f"{1 << length.bit_length() - 1 if length else 0:9d}"
