"""Writing files so that a crash or a full disk never leaves half of one."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterable

from mtnlg.core.errors import CannotWrite, TemporaryFailure

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FOLDERS = "--workdir, --config.data.directory or --output"


@contextlib.contextmanager
def writing(path, num_bytes: int = 0, named_by: str = FOLDERS):
    """Turns an OSError while `path` is written into what its user should read.

    num_bytes: what it needs at least, 0 if nobody knows; named_by: the options from which the path comes.

    Raises TemporaryFailure when the disk or the quota is full, CannotWrite for everything else.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno not in DISK_FULL:
            raise CannotWrite(f"cannot write: {why}", str(path), f"another {named_by}, or its owner's permission") from error
        needed = f"; {num_bytes} bytes at least are needed, {_free_bytes(path)} are free" if num_bytes else ""
        what = f"no room to write: {why}{needed}; what was there before is untouched"
        raise TemporaryFailure(what, str(path), "free some space (or quota), then the same command again") from error


@contextlib.contextmanager
def writing_by_library(path, num_bytes: int = 0, named_by: str = FOLDERS):
    """`writing`, which also knows a full disk by the words of Orbax and TensorStore: they do not always raise an OSError."""
    with writing(path, num_bytes, named_by):
        try:
            yield
        except Exception as error:
            if any(word in str(error) for word in ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED", "File too large", "quota exceeded")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def _free_bytes(path) -> int:
    return shutil.disk_usage(next(p for p in pathlib.Path(path).absolute().parents if p.exists())).free


def make_folder(path, named_by: str = FOLDERS) -> None:
    """Makes a folder and those above it, if need be; named_by: as in `writing`. Raises CannotWrite or TemporaryFailure."""
    with writing(path, named_by=named_by):
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)


def draft(path: pathlib.Path) -> pathlib.Path:
    """The name a file bears until it is whole. Always the same, so that what a crash leaves is overwritten: one writer at a time."""
    return path.with_name(path.name + ".tmp")


def write_synced(path, content: bytes | str | Iterable[bytes]) -> None:
    """Writes (text as UTF-8, pieces one by one) and waits for the disk. Raises OSError."""
    whole = content.encode() if isinstance(content, str) else content
    with open(path, "wb") as file:
        file.writelines([whole] if isinstance(whole, bytes) else whole)
        sync(file)


def sync(file) -> None:
    """Waits until an open file is on the disk. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path) -> None:
    """Makes the names in a folder last through a power cut. Raises OSError."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomic(path, content: bytes | str, named_by: str = FOLDERS) -> None:
    """Puts `content` at `path`; whoever looks, even after a power cut, sees all of the old file or all of the new.

    named_by: as in `writing`. Raises CannotWrite or TemporaryFailure, and leaves no half file.
    """
    path = pathlib.Path(path)
    with writing(path, len(content), named_by):
        try:
            write_synced(draft(path), content)
            os.replace(draft(path), path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                draft(path).unlink()


@contextlib.contextmanager
def making_folder(path: pathlib.Path):
    """Gives an empty folder to write into, which then bears the name `path`: whoever looks sees all that was written, or nothing.

    Raises CannotWrite or TemporaryFailure.
    """
    with writing(path):
        shutil.rmtree(draft(path), ignore_errors=True)
        draft(path).mkdir()
    yield draft(path)
    with writing(path):
        for file in draft(path).iterdir():
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        sync_folder(draft(path))
        os.replace(draft(path), path)
        sync_folder(path.parent)


class AppendFile:
    """A file that grows by whole records: one that does not fit leaves nothing behind.

    Raises TemporaryFailure (no space) or CannotWrite, on opening and on appending.
    """

    def __init__(self, path):
        self._path = path
        with writing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, record: bytes) -> None:
        """Adds one record and hands it to the kernel, so that it outlives this process."""
        size_bytes = os.fstat(self._file).st_size
        rest = memoryview(record)
        with writing(self._path, len(record)):
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, size_bytes)
                raise

    def sync(self) -> None:
        """Waits until every record is on the disk."""
        with writing(self._path):
            os.fsync(self._file)

    def close(self) -> None:
        """Gives the file back; nothing can be appended afterwards."""
        os.close(self._file)
