"""What a directory of prepared tokens holds, and a fingerprint of everything that shaped it.

`manifest.json` is written last and at once: a directory without it is half-finished, one with it is whole.
"""

import contextlib
import hashlib
import json
import pathlib
import platform
from dataclasses import dataclass

from mtnlg.core import files, schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.corpus import sources, split, tokens

FILE = "manifest.json"
_FORMAT = 2  # of the split, the stores and this file: a prepared directory of another format is not reused


@dataclass(frozen=True)
class PreparedStore:
    """One side of a source: the files `prefix`.bin, .idx, .json."""

    prefix: pathlib.Path
    num_tokens: int  # with the end-of-document token of each document
    num_bytes: int  # of UTF-8 text
    num_documents: int
    bin_sha256: str
    idx_sha256: str


@dataclass(frozen=True)
class PreparedSource:
    """A source as tokens, split into what is trained on and what never is."""

    name: str
    train: PreparedStore
    heldout: PreparedStore
    drops: dict[str, int]  # {reason: documents left out}


@dataclass(frozen=True)
class Prepared:
    """A prepared directory: the tokenizer's path (for `tokenizer.load`) and the sources, in the order of `data.source`."""

    tokenizer: pathlib.Path
    sources: tuple[PreparedSource, ...]


def fingerprint(config: schema.Config, tokenizer_sha256: str | None) -> dict:
    """{key: value} of everything that shapes prepared tokens; tokenizer_sha256 of a tokenizer that is given, none for one to train.

    A `python` source is known by its version, files by their paths inside the source, sizes and times of change.
    """
    data = config.data
    found = {"format": _FORMAT, "data.source": [_identity(*pair) for pair in zip(split.names(data.source), data.source, strict=True)]}
    found |= {"data.heldout_fraction": data.heldout_fraction, "data.max_document_bytes": data.max_document_bytes}
    if tokenizer_sha256:
        return found | {"data.tokenizer": f"sha256 {tokenizer_sha256}"}
    trained = {"data.tokenizer_train_bytes": data.tokenizer_train_bytes, "model.vocab_size": config.model.vocab_size}
    return found | {"data.tokenizer": data.tokenizer} | trained


def _identity(name: str, source: str) -> str:
    if source == sources.PYTHON:
        return f"{name}: {platform.python_implementation()} {platform.python_version()}"
    digest = hashlib.blake2b(digest_size=8)
    num_files = num_bytes = 0
    for file in tokens.files(source) if tokens.is_folder(source) else sources.files(source):
        try:
            stat = file.path.stat()
        except OSError as error:
            raise MissingInput(f"cannot be read: {error.strerror}", str(file.path), "a source without it") from error
        digest.update(json.dumps([file.id, stat.st_size, stat.st_mtime_ns]).encode())
        num_files += 1
        num_bytes += stat.st_size
    return f"{name}: {num_files} files, {num_bytes} bytes, {digest.hexdigest()}"


def write(directory: pathlib.Path, prepared: Prepared, wanted: dict) -> None:
    """Makes the directory a prepared one, in one step. Raises CannotWrite, TemporaryFailure."""

    def store(side: PreparedStore) -> dict:
        return vars(side) | {"prefix": side.prefix.name}

    listed = [vars(s) | {"train": store(s.train), "heldout": store(s.heldout)} for s in prepared.sources]
    tokenizer = prepared.tokenizer.relative_to(directory).as_posix()
    content = json.dumps({"fingerprint": wanted, "tokenizer": tokenizer, "sources": listed}, indent=1)
    files.write_atomic(directory / FILE, content + "\n")


def read(directory: pathlib.Path, wanted: dict) -> Prepared | None:
    """What the directory holds, or None if nothing was finished there.

    Raises ConfigError when it was shaped by something else than `wanted`, naming what, and DataError when the manifest is damaged.
    """
    if not (directory / FILE).exists():
        return None
    with _damage_named(directory):
        held = json.loads((directory / FILE).read_text())["fingerprint"]
        differing = [
            f"{key} is {_show(held.get(key))} there, {_show(wanted.get(key))} now"
            for key in held | wanted
            if held.get(key) != wanted.get(key)
        ]
        if differing:
            cure = f"--config.data.directory=NEW_FOLDER, or delete {directory}"
            raise ConfigError(f"other tokens are prepared there: {'; '.join(differing)}", str(directory), cure)
    return load(directory)


def load(directory: pathlib.Path) -> Prepared:
    """What the directory holds, whatever shaped it: for the processes that `prepare` did not run in. Raises MissingInput, DataError."""
    with _damage_named(directory):
        try:
            content = json.loads((directory / FILE).read_text())
        except OSError as error:
            cure = "a folder that every process of the job sees"
            raise MissingInput(f"no prepared tokens here: {error.strerror}", str(directory), cure) from None
        return Prepared(directory / content["tokenizer"], tuple(_source(directory, **entry) for entry in content["sources"]))


@contextlib.contextmanager
def _damage_named(directory: pathlib.Path):
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the manifest is damaged: {error!r}", str(directory / FILE), f"delete {directory} and start again") from None


def _source(directory: pathlib.Path, name: str, train: dict, heldout: dict, drops: dict) -> PreparedSource:
    sides = [PreparedStore(**side | {"prefix": directory / side["prefix"]}) for side in (train, heldout)]
    return PreparedSource(name, *sides, drops)


def _show(value) -> str:
    return "absent" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
