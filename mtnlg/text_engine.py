"""An engine whose answers are text: whole characters, up to the first stop string."""

import codecs
from collections.abc import Collection, Sequence
from typing import NamedTuple

from mtnlg.core.errors import ConfigError
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.infer.engine import Engine, dropped
from mtnlg.infer.request import Request, Token


class Written(NamedTuple):
    """A token of text `number`, and what can be given out since: it is whole and can no longer become part of a stop string.

    finish: None while it goes on; with its last token "stop" (a stop string or id, whose text is not given out) or "length".
    """

    number: int
    text: str
    token: Token
    finish: str | None
    slides: int


class TextEngine:
    """Texts that are being written by an engine; each `step` brings some of them on."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine):
        self.tokenizer, self.engine = tokenizer, engine
        self._assemblies: dict[int, Assembly] = {}
        self._waiting: list[Written] = []  # told in a step that was taken for others

    def submit(self, request: Request, stop: str | Sequence[str] = ()) -> int:
        """Queues a text, which ends at the tokenizer's `end_ids` too, and returns its number.

        Raises ConfigError as the engine does, and for a stop text without letters.
        """
        stop = [stop] if isinstance(stop, str) else list(stop)
        if "" in stop:
            raise ConfigError("an empty stop text ends nothing", "stop", "stop=TEXT")
        number = self.engine.submit(request._replace(stop_ids=request.stop_ids | self.tokenizer.end_ids))
        self._assemblies[number] = Assembly(stop)
        return number

    def cancel(self, number: int) -> None:
        """Ends a text, if it has not ended; nothing more is told of it."""
        self._end(number)
        self._waiting = [written for written in self._waiting if written.number != number]

    @property
    def busy(self) -> bool:
        return self.engine.busy

    def step(self) -> list[Written]:
        """One step of the engine, as text."""
        told = []
        for number, token, finish, slides in self.engine.step_for(self._assemblies):
            assembly = self._assemblies[number]
            text = assembly.add(b"" if finish == "stop" else self.tokenizer.decode_bytes([token.id]), ended=finish is not None)
            if assembly.stopped:
                finish = "stop"
            if finish is not None:
                self._end(number)
            told.append(Written(number, text, token, finish, slides))
        return told

    def step_for(self, numbers: Collection[int]) -> list[Written]:
        """What is told of these texts: what steps for others told of them, or else what one step tells. For callers that take turns.

        Raises TemporaryFailure when nothing will be told any more: a step for others failed.
        """
        if not any(written.number in numbers for written in self._waiting):
            if not self.busy:
                raise dropped()
            self._waiting += self.step()
        found = [written for written in self._waiting if written.number in numbers]
        self._waiting = [written for written in self._waiting if written.number not in numbers]
        return found

    def _end(self, number: int) -> None:
        self.engine.cancel(number)
        self._assemblies.pop(number, None)


class Assembly:
    """Text out of bytes that come token by token."""

    def __init__(self, stop: Sequence[str]):
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def add(self, piece: bytes, ended: bool) -> str:
        """What can be given out: whole characters that cannot belong to a stop string. At the end, half a character becomes a mark."""
        self._held += self._decoder.decode(piece, final=ended)
        places = [place for place in map(self._held.find, self._stop) if place >= 0]
        self.stopped = bool(places)
        safe = min(places) if places else len(self._held) if ended else len(self._held) - self._overlap()
        text, self._held = self._held[:safe], self._held[safe:]
        return text

    def _overlap(self) -> int:
        """Characters at the end that a stop string may begin with."""
        return max((n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
