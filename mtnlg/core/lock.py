"""One process at a time: a lock of the kernel on a file that says who holds it."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator

from mtnlg.core import files
from mtnlg.core.errors import CannotWrite


@contextlib.contextmanager
def held(path, on_busy: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock file `path` for this process. While somebody else does, `on_busy` learns who; if it does not raise, we wait.

    The kernel drops the lock when its process dies, however it dies: a file left behind blocks nobody.
    Raises CannotWrite or TemporaryFailure, and what on_busy raises.
    """
    with files.writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(file, pathlib.Path(path), on_busy)
        yield
    finally:
        os.close(file)


def _take(file: int, path: pathlib.Path, on_busy: Callable[[str], None]) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_busy(os.pread(file, 1000, 0).decode(errors="replace").strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise CannotWrite(f"this folder cannot be locked: {error.strerror}", str(path.parent), "a folder on a local disk") from error
    with files.writing(path):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}@{socket.gethostname()} since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}\n".encode(), 0)
        os.fsync(file)  # for who asks on another machine
