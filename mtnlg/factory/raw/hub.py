"""Data sets of the Hugging Face hub, streamed: hf:NAME[:CONFIG[:SPLIT]], the split `train` if none is named.

Nothing but data is loaded: `datasets` runs no code of a data set from version 4 on.
"""

import json
from collections.abc import Iterator

from mtnlg.core import extras
from mtnlg.core.errors import ConfigError, TemporaryFailure
from mtnlg.factory import documents
from mtnlg.factory.documents import Unreadable

PREFIX = "hf:"
FORM = f"{PREFIX}NAME[:CONFIG[:SPLIT]]"


def name_of(path: str) -> str:
    """What the documents of a data set come from: its name without its owner. Raises ConfigError where a path has another form."""
    return _parts(path)[0].rpartition("/")[2]


def _parts(path: str) -> tuple[str, str, str]:
    """(name, config, split), the last two perhaps empty."""
    name, config, split, *rest = [*path.removeprefix(PREFIX).split(":"), "", ""]
    if not name or any(rest):
        raise ConfigError(f"{path!r} names no data set", "--input", FORM)
    return name, config, split


def rows(path: str, columns: tuple[str, ...]) -> Iterator[bytes | Unreadable]:
    """The rows of a data set as JSON objects with those of the columns that are there.

    Raises ConfigError (no such data set, or `datasets` is missing), TemporaryFailure (the hub cannot be reached).
    """
    with extras.needed("hub"):
        import datasets

    name, config, split = _parts(path)
    try:
        for row in datasets.load_dataset(name, config or None, split=split or "train", streaming=True):
            content = json.dumps({key: row[key] for key in columns if row.get(key) is not None}, default=str).encode()
            yield content if len(content) <= documents.MAX_RECORD_BYTES else Unreadable("too long")
    except (FileNotFoundError, ValueError) as error:  # datasets' own errors for a wrong name, config or split are of these kinds
        raise ConfigError(f"cannot be read: {_first_line(error)}", path, f"{FORM} as on the hub") from None
    except Exception as error:
        what = f"the hub cannot be read: {type(error).__name__}: {_first_line(error)}"
        raise TemporaryFailure(what, path, "the same command again, which goes on") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
