"""Writing files so that a crash or a full disk never leaves half of one."""

import contextlib
import errno
import os
import pathlib

from mtnlg.core.errors import CannotWrite, MtnlgError, TemporaryFailure

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_error(error: OSError, path) -> MtnlgError:
    """What a user should read when writing to `path` failed: TemporaryFailure for a full disk or quota, else CannotWrite."""
    if error.errno in _DISK_FULL:
        return TemporaryFailure(f"no room to write: {error.strerror}", str(path), "free some space and start again with the same --workdir")
    return CannotWrite(f"cannot write: {error.strerror}", str(path), "another --workdir, or its owner's permission")


def write_atomic(path, content: bytes | str) -> None:
    """Puts `content` (text as UTF-8) at `path`; whoever looks, even after a power cut, sees all of the old file or all of the new.

    Raises TemporaryFailure (no space) or CannotWrite.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise write_error(error, path) from error


def _sync_directory(path: pathlib.Path) -> None:
    """Makes the names in a folder last through a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class AppendFile:
    """A file that grows by whole records: one that does not fit leaves nothing behind.

    Raises TemporaryFailure (no space) or CannotWrite, on opening and on appending.
    """

    def __init__(self, path):
        self._path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(error, path) from error

    def append(self, record: bytes) -> None:
        """Adds one record and hands it to the kernel, so that it outlives this process."""
        size_bytes = os.fstat(self._file).st_size
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size_bytes)
            raise write_error(error, self._path) from error

    def close(self) -> None:
        """Gives the file back; nothing can be appended afterwards."""
        os.close(self._file)
