"""Writing a file whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil

from mtnlg.core.errors import CannotWrite, TemporaryFailure

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def translate_errors(path: pathlib.Path, num_bytes: int):
    """Turns an OSError while `path` (num_bytes long, at least) is written into the user's error.

    Raises TemporaryFailure when the disk or the quota is full, CannotWrite for everything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise CannotWrite(f"cannot write: {error.strerror or error}", str(path), "a folder you may write to") from error
        free = shutil.disk_usage(path.parent).free
        raise TemporaryFailure(
            f"no space left: {num_bytes} bytes at least are needed, {free} are free, and what was there before is untouched",
            str(path),
            "free some space (or quota), then the same command again",
        ) from error


def temporary(path: pathlib.Path) -> pathlib.Path:
    """The name a file bears until it is whole."""
    return path.with_name(path.name + ".tmp")


def write_synced(path: pathlib.Path, content: bytes) -> None:
    """Writes and flushes to the disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Puts `content` at `path` in one step, making its folder. Raises CannotWrite or TemporaryFailure, and leaves no half file."""
    draft = temporary(path)
    with translate_errors(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_synced(draft, content)
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
