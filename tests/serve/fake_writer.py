"""A Writer without a model: bytes are its tokens, and it writes a fixed sentence, from a place that prompt and seed decide.

It has a thread, rows and a bounded queue as a real one; a step of all rows takes `step_secs`.
"""

import codecs
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from mtnlg.core.errors import ConfigError, DataError, MtnlgError, TemporaryFailure
from mtnlg.infer.request import check_settings
from mtnlg.serve.writer import Busy, Delta, Failed, Job, Load, Piece

SENTENCE = "The quick brown fox 狐 jumps över the lazy dog 🐶. <img src=x onerror=alert(1)> "
_BYTES = SENTENCE.encode()
WIDTH = 8  # of a vector


def written(prompt: Sequence[int], num_tokens: int, seed: int = 0, temperature: float = 1.0) -> bytes:
    """What the fake writes. temperature 0 starts at the sentence's beginning; otherwise at one of its words."""
    begins = [0, *(place + 1 for place, byte in enumerate(_BYTES[:-1]) if byte == 32)]
    begin = begins[(sum(prompt) + seed) % len(begins)] if temperature else 0
    repeated = _BYTES * (2 + num_tokens // len(_BYTES))
    return repeated[begin : begin + num_tokens]


class _Row:
    """One choice being written."""

    def __init__(self, ticket: "_Ticket", choice: int):
        self.ticket, self.choice = ticket, choice
        self.request = ticket.job.requests[choice]
        self.bytes = written(self.request.prompt, self.request.max_new_tokens, self.request.seed, self.request.temperature)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.place, self.held = 0, ""

    def step(self, context: int) -> Delta:
        """One token on. Text that may be a stop string's beginning is held back."""
        byte = self.bytes[self.place]
        self.place += 1
        num_tokens = len(self.request.prompt) + self.place
        finish = "length" if self.place == len(self.bytes) else None
        self.held += self.decoder.decode(bytes([byte]), final=finish is not None)
        cuts = [self.held.index(stop) for stop in self.ticket.job.stop if stop in self.held]
        if byte in self.request.stop_ids or cuts:
            finish = "stop"
        keep = 0
        if cuts:
            self.held = self.held[: min(cuts)]
        elif finish is None:
            keep = max((n for stop in self.ticket.job.stop for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        told, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        slides = max(0, num_tokens - context) // max(1, context // 2) + (num_tokens > context)
        return Delta(self.choice, told, (_piece(byte, self.request.num_likeliest),), finish, slides)


class _Ticket:
    def __init__(self, writer: "FakeWriter", job: Job, notify):
        self.writer, self.job, self.notify, self.is_cancelled = writer, job, notify, False

    def cancel(self) -> None:
        with self.writer.lock:
            if not self.is_cancelled:
                self.is_cancelled = True
                mine = [row for row in (*self.writer.rows, *self.writer.queue) if row.ticket is self]
                self.writer.num_cancelled += bool(mine)
                self.writer.queue = deque(row for row in self.writer.queue if row.ticket is not self)


class FakeWriter:
    """max_rows at once, max_queue waiting. `failure`: told instead of the next step, once."""

    name, vocab_size = "fake", 256

    def __init__(self, context: int = 512, max_rows: int = 8, max_queue: int = 64, step_secs: float = 0.0, can_chat: bool = True):
        self.context, self.max_rows, self.max_queue, self.step_secs, self.can_chat = context, max_rows, max_queue, step_secs, can_chat
        self.lock = threading.RLock()
        self.wakes = threading.Condition(self.lock)
        self.rows: list[_Row] = []
        self.queue: deque[_Row] = deque()
        self.num_cancelled, self.prompt_tokens, self.written_tokens = 0, 0, 0
        self.failure: MtnlgError | None = None
        self.is_closed = False
        self.thread = threading.Thread(target=self._write, name="fake writer")
        self.thread.start()

    def prompt_ids(self, text: str) -> list[int]:
        return list(text.encode())

    def chat_ids(self, messages) -> list[int]:
        if any(message.role == "user" and message.content == "refuse me" for message in messages):
            raise DataError("the chat template fails: no", "/secret/path")
        return list("".join(f"<{m.role}>{m.content}\n" for m in messages).encode() + b"<assistant>")

    def submit(self, job: Job, notify) -> _Ticket:
        for request in job.requests:
            check_settings(request)
            if len(request.prompt) + request.max_new_tokens > self.context and not request.slide:
                raise ConfigError("more tokens than the context", "prompt")
        ticket = _Ticket(self, job, notify)
        with self.lock:
            free = max(0, self.max_rows - len(self.rows)) + self.max_queue - len(self.queue)
            if self.is_closed:
                raise TemporaryFailure("the server is ending")
            if len(job.requests) > free:
                raise Busy
            self.queue.extend(_Row(ticket, choice) for choice in range(len(job.requests)))
            self.wakes.notify()
        return ticket

    def score(self, ids: Sequence[int], num_likeliest: int, is_wanted) -> list[Piece]:
        return [_piece(byte, num_likeliest if place else None) for place, byte in enumerate(ids)]

    def embed(self, texts: Sequence[str], is_wanted) -> tuple[np.ndarray, int]:
        rows = [np.bincount(np.frombuffer(text.encode(), np.uint8) % WIDTH, minlength=WIDTH) for text in texts]
        return np.stack(rows).astype(np.float32), sum(len(text.encode()) for text in texts)

    def load(self) -> Load:
        with self.lock:
            return Load(len(self.queue), len(self.rows), self.max_rows, self.prompt_tokens, 0, self.written_tokens)

    def close(self, timeout_secs: float) -> None:
        until = time.monotonic() + timeout_secs
        while time.monotonic() < until and (self.rows or self.queue):
            time.sleep(0.01)
        with self.lock:
            self.is_closed = True
            self.wakes.notify()
        self.thread.join()

    def _write(self) -> None:
        while True:
            with self.lock:
                self.rows = [row for row in self.rows if not row.ticket.is_cancelled]
                while self.queue and len(self.rows) < self.max_rows:
                    self.rows.append(self.queue.popleft())
                    self.prompt_tokens += len(self.rows[-1].request.prompt)
                if self.is_closed:
                    return
                if not self.rows:
                    self.wakes.wait()
                    continue
            time.sleep(self.step_secs)
            self._step()

    def _step(self) -> None:
        with self.lock:
            if self.failure:
                for ticket in {id(row.ticket): row.ticket for row in self.rows}.values():
                    ticket.notify(Failed(self.failure))
                self.failure, self.rows = None, []
            going = []
            for row in self.rows:
                if not row.ticket.is_cancelled:
                    delta = row.step(self.context)
                    self.written_tokens += 1
                    row.ticket.notify(delta)
                    if delta.finish is None:
                        going.append(row)
            self.rows = going


def _piece(byte: int, num_likeliest: int | None) -> Piece:
    """Its log-probability is a function of the byte; the likeliest are it and its neighbours."""
    if num_likeliest is None:
        return Piece(byte, bytes([byte]), None, ())
    probabilities = [((byte + step) % 256, -0.05 * (byte % 40) - 0.7 * step) for step in range(num_likeliest)]
    return Piece(byte, bytes([byte]), -0.05 * (byte % 40), tuple((bytes([one]), logprob) for one, logprob in probabilities))
