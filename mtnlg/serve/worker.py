"""A language model as the server's Writer: one thread owns it, takes jobs, steps, and tells what was written."""

import logging
import math
import pathlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from mtnlg import lm
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, TemporaryFailure
from mtnlg.data.chat import Chat, Message
from mtnlg.infer.chunks import power_of_two
from mtnlg.infer.request import Request, Token
from mtnlg.serve.writer import Busy, Delta, Failed, Job, Load, Piece
from mtnlg.text_engine import Written

_MOST_CALLS = 8  # scores and vectors that wait at a time
_LONGEST_WARM_UP = 128  # tokens of the longest prompt that programs are compiled for before the first request


def make_writer(path: str, mesh: schema.Mesh, num_rows: int, max_queue: int, begin: Callable[[str], None], **reading) -> "EngineWriter":
    """The model at `path`, ready to answer: its cache allocated, its programs compiled.

    begin: told of what comes after the weights are read; what it raises ends the loading. reading: other arguments of
    `lm.from_pretrained`. Raises what that raises, DataError (a broken chat template) and ConfigError (the cache does not fit the memory).
    """
    model = lm.from_pretrained(path, mesh, num_rows=num_rows, **reading)
    chat = Chat(model.tokenizer, path) if model.tokenizer.companions.template is not None else None
    begin("compiling its programs")
    try:
        model.engine.reserve(model.engine.context)
        _warm_up(model)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        what = f"a cache of {num_rows} rows of {model.engine.context} tokens does not fit the memory"
        raise ConfigError(what, "--context", "a smaller --context or fewer --rows") from error
    return EngineWriter(model, chat, _name(path), max_queue)


def _warm_up(model: lm.LanguageModel) -> None:
    """Prompts of every length that has a program of its own."""
    longest = min(_LONGEST_WARM_UP, model.engine.context - 2)
    lengths = {min(power_of_two(length, 1), longest) for length in range(1, longest + 1)}
    model.engine.generate([Request([model.tokenizer.eod_id] * length, 2) for length in sorted(lengths)])
    if model.engine.context > _LONGEST_WARM_UP + 2 and model.engine.num_rows > 1:  # a prefix goes from row to row
        model.engine.generate([Request([model.tokenizer.eod_id] * (_LONGEST_WARM_UP + 1), 1)] * 2)
    model.engine.forget()


def _name(path: str) -> str:
    """The folder's or file's, and for a checkpoint the run's."""
    place = pathlib.Path(path).resolve()
    if place.parent.name == "checkpoints":
        place = place.parent
    return place.parent.name if place.name == "checkpoints" else place.name.removesuffix(".gguf")


def _make(function: Callable, is_wanted: Callable[[], bool], future: Future) -> None:
    """The call, and what came of it; cancelled if nobody waits for it any more."""
    if not is_wanted():
        future.cancel()
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)


class _Ticket:
    """A job under way; `numbers` of its choices, by the text engine's. Only the writer's thread touches them."""

    def __init__(self, writer: "EngineWriter", job: Job, notify: Callable[[Delta | Failed], None]):
        self.writer, self.job, self.notify, self.numbers, self.is_cancelled = writer, job, notify, {}, False
        self.num_left = len(job.requests)  # choices that have not ended

    def cancel(self) -> None:
        with self.writer.wakes:
            self.is_cancelled = True
            self.writer.wakes.notify()


class EngineWriter:
    """max_queue: choices that wait for a row."""

    def __init__(self, model: lm.LanguageModel, chat: Chat | None, name: str, max_queue: int):
        self.name, self._model, self._chat, self._max_queue = name, model, chat, max_queue
        self.notes = model.notes
        self.context, self.vocab_size, self.can_chat = model.engine.context, model.engine.num_ids, chat is not None
        self.wakes = threading.Condition()
        self._new: list[_Ticket] = []
        self._tickets: list[_Ticket] = []
        self._calls: list[tuple[Callable, Callable[[], bool], Future]] = []
        self._closing, self._prompt_tokens, self._written_tokens = False, 0, 0
        self._thread = threading.Thread(target=self._work, name="writer")
        self._thread.start()

    def prompt_ids(self, text: str) -> list[int]:
        return self._model.prompt_ids(text)

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._chat.encode(list(messages))

    def submit(self, job: Job, notify: Callable[[Delta | Failed], None]) -> _Ticket:
        for request in job.requests:
            self._model.engine.check(request)
        ticket = _Ticket(self, job, notify)
        with self.wakes:
            load = self._load()
            self._check_open()
            if load.queued + load.running + len(job.requests) > load.rows + self._max_queue:
                raise Busy
            self._new.append(ticket)
            self.wakes.notify()
        return ticket

    def score(self, ids: Sequence[int], num_likeliest: int, is_wanted: Callable[[], bool]) -> list[Piece]:
        return [self._piece(token) for token in self._call(lambda: self._model.engine.score(ids, num_likeliest), is_wanted)]

    def embed(self, texts: Sequence[str], is_wanted: Callable[[], bool]) -> tuple[np.ndarray, int]:
        """A call for each text: what is written goes on between them."""
        vectors = [self._call(lambda text=text: self._model.encode([text]), is_wanted) for text in texts]
        return np.concatenate(vectors), sum(len(ids) for ids in self._model.tokenizer.encode_batch(list(texts)))

    def load(self) -> Load:
        with self.wakes:
            return self._load()

    def close(self, timeout_secs: float) -> None:
        with self.wakes:
            self._closing = True
            self.wakes.notify()
        self._thread.join(timeout_secs)
        with self.wakes:
            for ticket in (*self._new, *self._tickets):
                ticket.is_cancelled = True
            self.wakes.notify()
        self._thread.join()

    def _load(self) -> Load:
        choices = sum(ticket.num_left for ticket in (*self._new, *self._tickets))
        rows = self._model.engine.num_rows
        running = min(choices, rows)
        taken, drafted = self._model.drafts or (0, 0)
        reused = self._model.engine.reused_tokens
        return Load(choices - running, running, rows, self._prompt_tokens, reused, self._written_tokens, drafted, taken)

    def _call(self, function: Callable, is_wanted: Callable[[], bool]):
        """What the function returns, called in the writer's thread between two steps. Raises Busy, TemporaryFailure, and what it raises."""
        future: Future = Future()
        with self.wakes:
            self._check_open()
            if len(self._calls) >= _MOST_CALLS:
                raise Busy
            self._calls.append((function, is_wanted, future))
            self.wakes.notify()
        return future.result()

    def _check_open(self) -> None:
        if self._closing:
            raise TemporaryFailure("the server is ending", "serve", "the same request again")

    # The writer's thread

    def _work(self) -> None:
        going = True
        while going:
            try:
                going = self._wait()
                for written in self._model.texts.step():
                    self._tell(written)
            except Exception:
                logging.getLogger(__name__).exception("a step failed")
                self._fail()

    def _wait(self) -> bool:
        """Waits for work, takes what is new, and makes one call. False: there is none and will be none."""
        with self.wakes:
            while not (self._new or self._calls or self._tickets or self._model.texts.busy):
                if self._closing:
                    return False
                self.wakes.wait()
            new, self._new = self._new, []
            call = self._calls.pop(0) if self._calls else None
            self._tickets += new
            cancelled = [ticket for ticket in self._tickets if ticket.is_cancelled]
            self._tickets = [ticket for ticket in self._tickets if not ticket.is_cancelled]
        for ticket in cancelled:
            for number in ticket.numbers:
                self._model.texts.cancel(number)
        if call is not None:
            _make(*call)
        for ticket in new:
            if not ticket.is_cancelled:
                self._prompt_tokens += sum(len(request.prompt) for request in ticket.job.requests)
                ticket.numbers = {self._model.texts.submit(request, ticket.job.stop): n for n, request in enumerate(ticket.job.requests)}
        return True

    def _tell(self, written: Written) -> None:
        ticket = next(ticket for ticket in self._tickets if written.number in ticket.numbers)
        choice = ticket.numbers[written.number]
        self._written_tokens += 1
        at_end = written.token.id in ticket.job.requests[choice].stop_ids | self._model.tokenizer.end_ids
        pieces = () if at_end else (self._piece(written.token),)
        if written.finish is not None:
            with self.wakes:
                del ticket.numbers[written.number]
                ticket.num_left -= 1
                if not ticket.num_left:
                    self._tickets.remove(ticket)
        if not ticket.is_cancelled:
            ticket.notify(Delta(choice, written.text, pieces, written.finish, written.slides))

    def _fail(self) -> None:
        """Ends everything under way after a step that failed; what lies on the devices is made anew."""
        with self.wakes:
            tickets, self._tickets = self._tickets, []
        for ticket in tickets:
            for number in ticket.numbers:
                self._model.texts.cancel(number)
            if not ticket.is_cancelled:
                ticket.notify(Failed(TemporaryFailure("the model failed at a step", "serve", "the same request again")))
        self._model.engine.reset()

    def _piece(self, token: Token) -> Piece:
        """With the logarithms as JSON can say them."""
        bytes_of = self._model.tokenizer.decode_bytes
        likeliest = tuple((bytes_of([id]), logprob) for id, logprob in token.likeliest if math.isfinite(logprob))
        return Piece(token.id, bytes_of([token.id]), token.logprob, likeliest)
