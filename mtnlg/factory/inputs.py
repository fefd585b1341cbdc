"""What a stage reads: files and folders of records, in one order, from any place on."""

import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.corpus import sources, split
from mtnlg.factory import documents, folder
from mtnlg.factory.documents import Record, Unreadable

Piece = tuple[int, bytes | Unreadable]  # of a file: its number there, and a record's content or why there is none
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class Place(NamedTuple):
    """Where reading goes on: how many files are behind, how many records of the next one, and how many records in all."""

    file: int = 0
    record: int = 0
    number: int = 0


@dataclass(frozen=True)
class InputFile:
    """source: what its documents come from, if they do not say so themselves. id: the file's path inside the input, after its name.

    kind: of its records. is_ours: whether a stage wrote it. fault: why it is not opened.
    """

    source: str
    id: str
    path: pathlib.Path
    kind: str = "json"
    is_ours: bool = False
    fault: str = ""


class Inputs:
    """The records of JSONL files, of folders of them, and of folders that earlier stages wrote, in the order in which they are named.

    option: by which the paths were given. Raises MissingInput (no such path, or no permission), ConfigError (no path, another kind of
    file, a folder of several stages), DataError (an unfinished stage, one whose files are gone, a folder without files).
    """

    def __init__(self, paths: tuple[str, ...], option: str = "--input"):
        self.paths, self._option = paths, option
        if not paths:
            raise ConfigError("nothing is named", option, f"{option}=PATH,...")
        by_path = dict(zip(paths, split.names(paths), strict=True))
        self._files_of = {path: self._found(path, name) for path, name in by_path.items()}
        self.files = [file for files in self._files_of.values() for file in files]

    def identity(self) -> list:
        """What these inputs are known by: of a stage's output, what it says it wrote; of others, names, sizes and times of change."""
        return [self._identity(path, files) for path, files in self._files_of.items()]

    def require_outside(self, output: pathlib.Path) -> None:
        """Raises ConfigError for an output inside an input, which would be read when the stage goes on."""
        for path in self.paths:
            if output.resolve().is_relative_to(pathlib.Path(path).resolve()):
                raise ConfigError(f"{str(output)!r} lies in the input {path!r}", "--output", "a folder beside the inputs")

    @property
    def num_bytes(self) -> int | None:
        """Of all files; None where one is packed."""
        plain = all(not sources.is_packed(file.path) for file in self.files)
        return sum(file.path.stat().st_size for file in self.files) if plain else None

    def records(self, start: Place = Place()) -> Iterator[tuple[Place, Record]]:  # noqa: B008 (it is immutable)
        """(place behind it, record) of every record from `start` on. What cannot be read is a record with a fault."""
        number = start.number
        for index, file in enumerate(self.files[start.file :], start.file):
            skipped = start.record if index == start.file else 0
            for count, record in enumerate(itertools.islice(self._read(file), skipped, None), skipped + 1):
                number += 1
                yield Place(index, count, number), record

    def _identity(self, path: str, files: list[InputFile]):
        return folder.sha256(path) or stats(files)

    def _root(self, path: str) -> pathlib.Path:
        """Of what a path names. Raises MissingInput, and DataError for what a stage has not finished."""
        root = pathlib.Path(path)
        if not root.exists():
            raise MissingInput(f"there is no file or folder {path!r}", self._option, "a path that exists")
        if not os.access(root, os.R_OK | os.X_OK if root.is_dir() else os.R_OK):
            raise MissingInput(f"{path!r} cannot be read: permission denied", self._option, "its owner's permission, or another path")
        if root.is_dir():
            folder.require_ended(root)
        return root

    def _of_stage(self, root: pathlib.Path, name: str) -> list[InputFile]:
        """The documents that a stage wrote into its folder, and nothing else that lies there."""
        folder.require_whole(root)
        names = [part["name"] for part in folder.read(root)["parts"]]
        found = [InputFile(name, f"{name}/{one}", root / one, is_ours=True) for one in names if one.endswith(SUFFIXES)]
        if not found:
            raise DataError("there are no documents in this folder", str(root), "the folder of a stage that writes documents")
        return found

    def _found(self, path: str, name: str) -> list[InputFile]:
        root = self._root(path)
        if root.is_file():
            if not root.name.endswith(SUFFIXES):
                raise ConfigError(
                    f"{path!r} is no JSONL", self._option, f"one of {', '.join(SUFFIXES)}, made by python -m mtnlg data extract"
                )
            return [InputFile(name, name, root)]
        if not root.is_dir():
            raise ConfigError(f"{path!r} is no regular file", self._option, f"a file with {', '.join(SUFFIXES)}")
        if (root / folder.DONE).is_file():
            return self._of_stage(root, name)
        files = sources.walk(root, lambda name: name.endswith(SUFFIXES) and name not in (folder.QUARANTINE, folder.JOURNAL))
        found = [InputFile(name, f"{name}/{file.id}", file.path, fault=fault_of(file.path, root)) for file in files]
        if not found:
            cure = f"python -m mtnlg data extract --input={path}, which makes JSONL of files of many kinds"
            raise DataError("there is no JSONL in this folder", path, cure)
        self._require_one_stage(path, found)
        return found

    def _require_one_stage(self, path: str, found: list) -> None:
        stages = sorted({file.path.parent.name for file in found if (file.path.parent / folder.DONE).is_file()})
        if stages:
            what = f"{path!r} holds the folders of stages: {', '.join(stages)}"
            raise ConfigError(what, self._option, f"{self._option}={pathlib.Path(path) / stages[-1]}")

    def _read(self, file: InputFile) -> Iterator[Record]:
        number = 0
        try:
            for number, piece in self._pieces(file):
                if isinstance(piece, Unreadable):
                    yield Record(self._where(file, number), file.source, b"", file.kind, str(piece))
                else:
                    yield Record(self._where(file, number), file.source, piece, file.kind)
        except (DataError, MissingInput) as error:
            if file.is_ours:
                raise
            yield Record(self._where(file, number + 1), file.source, b"", file.kind, f"from here on: {error.what}")

    def _where(self, file: InputFile, number: int) -> str:
        return file.id if file.fault else f"{file.id}:{number}"

    def _pieces(self, file: InputFile) -> Iterator[Piece]:
        if file.fault:
            yield 1, Unreadable(file.fault)
            return
        with sources.opened(file.path) as stream:
            yield from lines(stream)


def lines(stream: BinaryIO) -> Iterator[Piece]:
    """The lines of JSONL that are not blank."""
    for number, line in enumerate(sources.lines(stream, documents.MAX_RECORD_BYTES), 1):
        if line is None:
            yield number, Unreadable("too long")
        elif line.strip():
            yield number, line


def fault_of(path: pathlib.Path, root: pathlib.Path) -> str:
    """Why a file in the folder `root` is not opened: nothing is read from outside, and nothing that may never end.

    Raises MissingInput for one that its user may not read: once allowed, it would else stay unread.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if real.is_dir():
        return "a link to a folder"
    if not real.is_relative_to(root.resolve()):
        return "a link that leads out of the folder"
    if real.is_file() and not os.access(real, os.R_OK):
        raise MissingInput("this file cannot be read: permission denied", str(path), "its owner's permission, or a folder without it")
    return "" if real.is_file() else "no regular file"


def stats(files: list[InputFile]) -> str:
    """What files are known by: all names, sizes and times of change."""
    known = hashlib.sha256()
    for file in files:
        found = None if file.fault else file.path.stat()
        known.update(json.dumps([file.id, file.fault or [found.st_size, found.st_mtime_ns]]).encode() + b"\n")
    return f"{len(files)} files, {known.hexdigest()}"
