"""Libraries that hostile files may break, each at work in a process of its own: what ends it costs nobody else anything.

The limits are in processor time, so that a busy machine decides as an idle one does.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator

from mtnlg.core.errors import DataError
from mtnlg.factory import workers
from mtnlg.factory.documents import Unreadable

CPU_SECONDS = 4.0  # for one text or row
_TEXT_BYTES, _FILE_BYTES = 2**30, 2**32  # of address space, for texts and for what reads a file
_DONE, _FAILED, _DAMAGED, _END = b"+", b"-", b"!", b"."


class Sandbox:
    """Calls the function that `make` gives, in a child that is started when it is needed and again when it was lost."""

    def __init__(self, make: Callable[[], Callable[[str], str]]):
        self._make, self._child, self._pipe = make, None, None

    def __call__(self, text: str) -> str:
        """Raises Unreadable when the function raises, takes too long, needs too much memory or ends the child."""
        if self._child is None:
            self._start()
        try:
            self._pipe.send_bytes(text.encode("utf-8", "surrogatepass"))
            answer = self._pipe.recv_bytes()
        except (EOFError, OSError):
            self.close()
            raise Unreadable("takes the parser too long, or breaks it") from None
        if answer[:1] == _FAILED:
            raise Unreadable(f"the parser gives up: {answer[1:].decode()}")
        return answer[1:].decode()

    def close(self) -> None:
        if self._child is not None:
            _end(self._child, self._pipe)
            self._child = None

    def _start(self) -> None:
        self._child, self._pipe = _begin(_serve, self._make)


def streamed(read: Callable[[], Iterator[bytes | Unreadable]], where: str) -> Iterator[bytes | Unreadable]:
    """What `read()` gives, in a child. Raises the DataError that it raises, and one where it takes too long or ends the child."""
    child, pipe = _begin(_stream, read)
    try:
        while (answer := pipe.recv_bytes())[:1] != _END:
            if answer[:1] == _DAMAGED:
                raise DataError(answer[1:].decode(), where, "a fresh copy of the file, or another form of it")
            yield answer[1:] if answer[:1] == _DONE else Unreadable(answer[1:].decode())
    except (EOFError, OSError):
        raise DataError("takes the reader too long, or breaks it", where, "a fresh copy of the file") from None
    finally:
        _end(child, pipe)


def _begin(target: Callable, argument: Callable):
    """(child, our end of its pipe)"""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=target, args=(theirs, argument), daemon=True)
    with workers.unstoppable_children():
        child.start()
    theirs.close()
    return child, ours


def _end(child, pipe) -> None:
    pipe.close()
    child.kill()
    child.join()


def _serve(pipe, make: Callable[[], Callable[[str], str]]) -> None:
    """In a child: texts come, texts go, until the pipe ends, as it does when the parent does."""
    function = make()
    _limit(_TEXT_BYTES)
    with contextlib.suppress(EOFError, OSError):
        while True:
            text = pipe.recv_bytes().decode("utf-8", "surrogatepass")
            with _time_limit():
                try:
                    answer = _DONE + function(text).encode("utf-8", "replace")
                except Exception as error:
                    answer = _FAILED + type(error).__name__.encode()
            pipe.send_bytes(answer)


def _stream(pipe, read: Callable[[], Iterator[bytes | Unreadable]]) -> None:
    """In a child: rows go, for as long as the parent takes them."""
    _limit(_FILE_BYTES)
    rows = read()
    with contextlib.suppress(BrokenPipeError):
        answer = b""
        while answer[:1] not in (_END, _DAMAGED):
            with _time_limit():
                try:
                    row = next(rows, None)
                    answer = _END if row is None else _FAILED + str(row).encode() if isinstance(row, Unreadable) else _DONE + row
                except DataError as error:
                    answer = _DAMAGED + error.what.encode("utf-8", "replace")
            pipe.send_bytes(answer)


def _limit(memory_bytes: int) -> None:
    """No memory beyond, no core files, no traces of a library's end on the terminal."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """SIGPROF ends the process, even inside a library, when the work inside has used the processor too long."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
