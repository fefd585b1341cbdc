"""The folder that a stage writes: parts, a journal while it is at work, `stage.json` when it has ended.

`journal.jsonl` begins with what the stage is (its name, options and inputs) and has a line for each part that is whole. A stage that
was killed goes on behind the last of them, and ends with the same bytes as one that was not.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from mtnlg.core import files
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.factory.tally import Tally

DONE = "stage.json"
JOURNAL = "journal.jsonl"
QUARANTINE = "quarantine.jsonl"
MADE_OF = "made_of.json"


class OtherWritten(ConfigError):
    """A folder holds what another stage has written, or the same one with other options or inputs."""


def sha256(path) -> str | None:
    """Of what an ended stage says of itself and of what it wrote there, but for the time it took; None where no stage has ended."""
    if not (pathlib.Path(path) / DONE).is_file():
        return None
    said = {key: value for key, value in read(pathlib.Path(path)).items() if key != "seconds"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def require_ended(path: pathlib.Path) -> None:
    """Raises DataError when a stage is still writing this folder, or was killed while it was."""
    if (path / JOURNAL).exists() and not (path / DONE).exists():
        raise DataError("the stage that writes this folder has not ended", str(path), "that stage's command again, which goes on")


def read(path: pathlib.Path) -> dict:
    """What an ended stage says: {'stage', 'options', 'inputs', 'parts', 'tally', ...}. Raises DataError."""
    require_ended(path)
    try:
        found = json.loads((path / DONE).read_bytes())
        return found | {"parts": [dict(part) for part in found["parts"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"no stage has ended here: {error!r}", str(path / DONE), "a folder that python -m mtnlg data wrote") from None


def require_whole(path: pathlib.Path) -> None:
    """Raises DataError when a file that an ended stage wrote is gone, or has another size."""
    for known in read(path)["parts"]:
        file = path / known["name"]
        size = file.stat().st_size if file.is_file() else None
        if size != known["bytes"]:
            what = "a file that the stage wrote is gone" if size is None else f"{size} bytes, and {known['bytes']} were written"
            raise DataError(what, str(file), f"delete {path} and give the command that made it again")


def is_made_of(path: pathlib.Path, of: dict) -> bool:
    """Whether `making` has made this folder of just that."""
    try:
        return json.loads((path / MADE_OF).read_bytes()) == of
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def making(path: pathlib.Path, of: dict) -> Iterator[pathlib.Path]:
    """As `files.making_folder`, for a folder between two passes that knows what it was made of; another one there is deleted.

    Raises CannotWrite or TemporaryFailure.
    """
    with files.making_folder(path) as draft:
        yield draft
        files.write_atomic(draft / MADE_OF, json.dumps(of))
        with files.writing(path):
            if path.exists():
                shutil.rmtree(path)


class Journal:
    """Of one stage in its folder. `parts`: what is known of every part that is whole, in order. `tally`: of all those found there; the
    tallies of parts stay on the disk, for in memory they would grow with the corpus. whole: the folder of the stage, if this is that of
    an inner pass.

    Raises OtherWritten, DataError, CannotWrite, TemporaryFailure.
    """

    def __init__(self, path: pathlib.Path, what: dict, whole: pathlib.Path | None = None):
        self.path, self._whole = path, whole or path
        self._what = json.loads(json.dumps(what))  # as it will be read
        files.make_folder(path)
        self.is_done = (path / DONE).exists()
        self.parts, self.tally = [], Tally()
        if self.is_done:
            self._require_same(held := read(path))
            self.parts = held["parts"]
            require_whole(path)
            (path / JOURNAL).unlink(missing_ok=True)  # left behind by a kill at the very end
        else:
            self._begin()

    def _begin(self) -> None:
        held, num_bytes = None, 0
        for end, entry in self._entries():
            num_bytes = end
            if held is None:
                held = entry
            else:
                self.tally.add(Tally(**entry.pop("tally")))
                self.parts.append(entry)
        if self.parts:
            self._require_same(held)
            with files.writing(self.path / JOURNAL):
                os.truncate(self.path / JOURNAL, num_bytes)
        else:  # a folder that no part has come to belongs to whoever comes
            files.write_atomic(self.path / JOURNAL, line(self._what))
        self._file = files.AppendFile(self.path / JOURNAL)

    def _entries(self) -> Iterator[tuple[int, dict]]:
        """(where it ends, the entry) of each whole line, one in memory at a time; a kill may have left a part of one. Raises DataError."""
        path, end = self.path / JOURNAL, 0
        if not path.exists():
            return
        with open(path, "rb") as file:
            for content in file:
                if not content.endswith(b"\n"):
                    return
                end += len(content)
                try:
                    entry = json.loads(content)
                except ValueError as error:
                    raise DataError(f"the journal is damaged: {error}", str(path), f"delete {self._whole} and start again") from None
                yield end, entry

    def write_quarantine(self) -> None:
        """What was set aside of every part, as the journal has it. The same again after a kill. Raises CannotWrite, TemporaryFailure."""
        named = (line(one) for _, entry in self._entries() for one in entry.get("tally", {}).get("quarantine", ()))
        if (first := next(named, None)) is not None:
            path = self.path / QUARANTINE
            with files.writing(path):
                files.write_synced(files.draft(path), itertools.chain([first], named))
                os.replace(files.draft(path), path)

    def _require_same(self, held: dict) -> None:
        differing = [key for key in self._what if held.get(key) != self._what[key]]
        if differing:
            shown = "; ".join(one for key in differing for one in _differences(key, held.get(key), self._what[key]))
            raise OtherWritten(f"something else is written there: {shown}", str(self.path), f"another --output, or delete {self._whole}")

    def part_path(self, suffix: str) -> pathlib.Path:
        """Of the next part."""
        return self.path / f"part-{len(self.parts):05d}{suffix}"

    def add(self, part: dict) -> None:
        """A part that is whole and on the disk."""
        self._file.append(line(part))
        self._file.sync()
        self.parts.append({key: value for key, value in part.items() if key != "tally"})

    def end(self, parts: list[dict], found: dict) -> None:
        """The stage has ended: these are its files, and this is what it says of itself beside."""
        parts = [part(known["name"], known["sha256"], known["bytes"]) for known in parts]
        self._file.close()
        files.write_atomic(self.path / DONE, json.dumps(self._what | {"parts": parts} | found, indent=1, ensure_ascii=False) + "\n")
        os.unlink(self.path / JOURNAL)


def part(name: str, sha256: str, num_bytes: int) -> dict:
    """What is known of a file that a stage wrote."""
    return {"name": name, "sha256": sha256, "bytes": num_bytes}


def line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _differences(key: str, there, now) -> list[str]:
    """In words, for people; of options each by its name."""
    if isinstance(there, dict) and isinstance(now, dict):
        differing = [name for name in dict.fromkeys([*there, *now]) if there.get(name) != now.get(name)]
        return [f"{name} {_short(there.get(name))} there, {_short(now.get(name))} now" for name in differing]
    if key == "inputs":
        return ["made of other inputs, or these have changed since"]
    return [f"{key} {_short(there)} there, {_short(now)} now"]


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
