"""SIGTERM, SIGINT and SIGUSR1 (Slurm's --signal=USR1@60) while a run trains: answered at once, obeyed at the next good moment."""

import contextlib
import os
import signal
import threading
import time

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# `timeout`, schedulers and terminals may send one wish twice, to the process and to its group.
ONE_WISH_SECS = 1.0


class StopSignals:
    """In its `with` block, on the main thread, a first signal sets `received` and is answered; a second one ends the process at once.

    The answer is a line on stderr with the promise of the moment. A thread gives it, woken by the handler in C: Python's own handlers
    wait for as long as a device computes.
    """

    def __init__(self, promise: str):
        self.received = False
        self._promise, self._number = promise, 0

    def __enter__(self) -> "StopSignals":
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._handlers = {number: signal.signal(number, self._note) for number in NUMBERS}
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._answer_all, args=(reader,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)
        self._thread.join()

    def promise(self, text: str) -> None:
        """What comes of a signal from now on; told at once if one has come already."""
        self._promise = text
        if self._number:
            self._answer()

    def _note(self, number, frame) -> None:
        self.received = True

    def _answer_all(self, reader: int) -> None:
        first_secs = 0.0
        while number := ord(os.read(reader, 1) or b"\0"):
            if number not in NUMBERS:
                continue
            if not self._number:
                self._number, first_secs = number, time.monotonic()
                self._answer()
            elif time.monotonic() - first_secs > ONE_WISH_SECS:
                os._exit(128 + number)
        os.close(reader)

    def _answer(self) -> None:
        line = f"mtnlg: {signal.Signals(self._number).name}: {self._promise}; a second signal ends it at once, without saving\n"
        with contextlib.suppress(OSError):
            os.write(2, (("\n" if os.isatty(2) else "") + line).encode())  # on a terminal a bar or ^C stands in this line
