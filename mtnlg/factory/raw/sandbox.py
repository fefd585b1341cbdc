"""A function over texts in a process of its own: what takes too long there or breaks it costs nobody else anything."""

import contextlib
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable

from mtnlg.factory.documents import Unreadable

CPU_SECONDS = 4.0  # for one text
MEMORY_BYTES = 2**30  # of address space
_DONE, _FAILED = b"+", b"-"


class Sandbox:
    """Calls the function that `make` gives, in a child that is started when it is needed and again when it was lost.

    The limit is in processor time, so that a busy machine decides as an idle one does.
    """

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
            self._pipe.close()
            self._child.kill()
            self._child.join()
            self._child = None

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._child = spawn.Process(target=_serve, args=(theirs, self._make), daemon=True)
        self._child.start()
        theirs.close()


def _serve(pipe, make: Callable[[], Callable[[str], str]]) -> None:
    """In the child. SIGPROF ends it even inside a library; the end of its parent does too, for then the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    function = make()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(EOFError, OSError):
        while True:
            text = pipe.recv_bytes().decode("utf-8", "surrogatepass")
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                answer = _DONE + function(text).encode("utf-8", "replace")
            except Exception as error:
                answer = _FAILED + type(error).__name__.encode()
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(answer)
    os._exit(0)
