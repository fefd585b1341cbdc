"""The hash list of a folder: size and SHA-256 of every file, and of the list itself; written last."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable

NAME = "MANIFEST.json"
CURE = "all of it, copied again; or, if you have changed it yourself, without MANIFEST.json"


def content(directory: pathlib.Path, known: dict[str, dict] | None = None) -> str:
    """What `MANIFEST.json` of a folder says. known: rows of files that were hashed as they were written."""
    rows = {name: (known or {}).get(name) or row(directory / name) for name in _files(directory)}
    return json.dumps({"format": 1, "files": rows, "sha256": _seal(rows)}, indent=1)


def _seal(rows: dict[str, dict]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def row(path: pathlib.Path) -> dict:
    """Of one file."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def whole_steps(directory: str | os.PathLike) -> list[int]:
    """Numbers of the step folders with a manifest, oldest first; always read from disk."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and (p / NAME).is_file())


def problems(directory: pathlib.Path, belongs: Callable[[str], bool] = lambda name: True) -> list[str]:
    """What differs from the list: files that are missing, changed, cannot be read, or extra. Empty where all is well.

    belongs: whether a name would be read if it were there; files of other names may lie beside those of the list.
    """
    try:
        text = (directory / NAME).read_text()
        listed = json.loads(text)
        rows = listed["files"]
        expected = {str(name): (int(row["bytes"]), str(row["sha256"])) for name, row in rows.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{NAME} cannot be read"]
    sealed = {"sha256": _seal(rows)} if listed.keys() != {"format", "files"} else {}  # older lists are not
    if text != json.dumps({"format": 1, "files": rows} | sealed, indent=1):
        return [f"{NAME} has changed"]
    try:
        present = {name: directory / name for name in _files(directory)}
    except OSError as error:
        return [f"the folder cannot be read: {error.strerror}"]
    found = [f"{name} is missing" for name in expected if name not in present]
    found += [f"{name} does not belong to it" for name in present if name not in expected and belongs(name)]
    return found + [line for name, one in expected.items() if name in present for line in _differing(present[name], name, *one)]


def changed(path: pathlib.Path) -> list[str]:
    """What differs of one file from the list beside it; nothing where there is no list, or where it does not name the file."""
    if not (path.parent / NAME).is_file():
        return []
    try:
        expected = json.loads((path.parent / NAME).read_text())["files"].get(path.name)
        if expected is None:
            return []
        size, digest = int(expected["bytes"]), str(expected["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{NAME} cannot be read"]
    return _differing(path, path.name, size, digest)


def _differing(path: pathlib.Path, name: str, size: int, digest: str) -> list[str]:
    try:
        return [f"{name} has changed"] if path.stat().st_size != size or _sha256(path) != digest else []
    except OSError as error:
        return [f"{name} cannot be read: {error.strerror}"]


def _files(directory: pathlib.Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file() and p.name != NAME)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
