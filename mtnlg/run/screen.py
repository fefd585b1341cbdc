"""Standard output of a run, which may outlive whoever reads it."""

import os
from typing import TextIO


class Screen:
    """A stream that falls silent when nobody reads it any more (`mtnlg train ... | head`): the run goes on and saves."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            return self._fall_silent(len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._fall_silent(0)

    def _fall_silent(self, length: int) -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return length

    def __getattr__(self, name: str):
        return getattr(self._stream, name)
