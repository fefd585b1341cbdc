"""Signals that a process passes on to the processes it has started."""

import signal
import subprocess
import time

ONE_WISH_SECS = 1.0  # `timeout`, schedulers and terminals may send one signal twice, to a process and to its group
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Forwarding:
    """In its `with` block, on the main thread, a first signal goes to all of `children`; `passed_on` says that one came.

    A second one, later than ONE_WISH_SECS, raises KeyboardInterrupt.
    """

    def __init__(self, children: list[subprocess.Popen]):
        self._children = children
        self._first_secs: float | None = None

    @property
    def passed_on(self) -> bool:
        return self._first_secs is not None

    def __enter__(self) -> "Forwarding":
        heard = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
        self._before = {number: signal.signal(number, self._forward) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number, frame) -> None:
        if self._first_secs is None:
            self._first_secs = time.monotonic()
            for child in self._children:
                child.send_signal(number)
        elif time.monotonic() - self._first_secs > ONE_WISH_SECS:
            raise KeyboardInterrupt


def ignore() -> None:
    """From now on nothing interrupts this process, until `Forwarding` ends."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
