"""What a server needs of a model, and nothing of how it is done: no jax here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from mtnlg.core.errors import MtnlgError
from mtnlg.data.chat import Message
from mtnlg.infer.request import Request


class Piece(NamedTuple):
    """A token as text: its bytes, its log-probability (None: not asked for, or the first of a text) and the likeliest of its place."""

    id: int
    bytes: bytes
    logprob: float | None
    likeliest: tuple[tuple[bytes, float], ...]


class Delta(NamedTuple):
    """What one choice has written since its last delta. `text` is whole UTF-8 and free of stop strings; the pieces' bytes may run ahead.

    finish: None while it goes on; then "stop" (a stop string, a stop id or the model's own end), or "length".
    slides: how often the text's first half has been dropped so far.
    """

    choice: int
    text: str
    pieces: tuple[Piece, ...]
    finish: str | None = None
    slides: int = 0


@dataclass(frozen=True)
class Job:
    """One request for each choice; stop: texts before which a choice ends."""

    requests: tuple[Request, ...]
    stop: tuple[str, ...] = ()


class Failed(NamedTuple):
    """The job has ended without an answer."""

    error: MtnlgError


class Busy(Exception):
    """The queue is full."""


class Load(NamedTuple):
    """queued, running: jobs' choices; rows: what can run at once. The others count since the start; the last two only with a draft."""

    queued: int
    running: int
    rows: int
    prompt_tokens: int
    reused_tokens: int
    written_tokens: int
    drafted_tokens: int = 0
    taken_tokens: int = 0


class Ticket(Protocol):
    def cancel(self) -> None:
        """Ends the job; its rows are free within a step. Nothing more is told of it. From any thread, more than once."""


class Writer(Protocol):
    """A model that writes in a thread of its own. Every method may be called from any thread."""

    name: str
    context: int  # tokens of a prompt and its answer together
    vocab_size: int
    can_chat: bool

    def prompt_ids(self, text: str) -> list[int]:
        """What is read before the answer, with what texts begin with."""

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Raises DataError (no template, or it refuses the conversation)."""

    def submit(self, job: Job, notify: Callable[[Delta | Failed], None]) -> Ticket:
        """notify: called from the writer's thread, until each choice has finished or the job has failed; it must return at once.

        Raises Busy, ConfigError for a request that the model cannot honour, or TemporaryFailure when the writer is closing.
        """

    def score(self, ids: Sequence[int], num_likeliest: int, is_wanted: Callable[[], bool]) -> list[Piece]:
        """Every token of a text with its log-probability, the first without. Blocks; what is not wanted any more is not begun.

        Raises Busy, ConfigError, TemporaryFailure.
        """

    def embed(self, texts: Sequence[str], is_wanted: Callable[[], bool]) -> tuple[np.ndarray, int]:
        """([texts, D] float32, tokens read): the mean hidden states. As `score`; raises DataError too."""

    def load(self) -> Load: ...

    def close(self, timeout_secs: float) -> None:
        """No new jobs; those running may end within the time, the others are cancelled, and the thread is gone."""
