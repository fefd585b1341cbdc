"""Generation over token ids: continuous batching over the rows of a cache.

A request takes a free row, and its prompt is read in chunks counted from its beginning. Work goes in rounds: as many chunks as there are
prompts that wait and have rows, `ROUND_CHUNKS` at most, then one token in every row that writes. What a row holds of an earlier prompt is
not read again. The chunks, the number of rows and attention's blocks are fixed, so that the bits of a request's logits, and with them its
tokens, depend neither on what runs beside it nor on what was found read.
"""

from collections import deque
from collections.abc import Collection, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, TemporaryFailure
from mtnlg.infer import chunks
from mtnlg.infer.laying import lay
from mtnlg.infer.programs import Beginning, Programs, Told, sampling_of
from mtnlg.infer.request import Request, Token, check_settings
from mtnlg.infer.room import check_room
from mtnlg.infer.text import Event, Text, token_of
from mtnlg.model import cache as caches

FIRST_SLOTS = 2048  # at most, of each row; more when a text needs them
ROUND_CHUNKS = 8  # at most, between two tokens of a text


def refuse_stages(config: schema.Config) -> None:
    """Raises ConfigError for a mesh with pipeline stages: before weights are read for it."""
    if config.mesh.pipe > 1:
        what = f"mesh.pipe={config.mesh.pipe}: text is generated without pipeline stages, whatever the model was trained on"
        raise ConfigError(what, "--config.mesh.pipe", "python -m mtnlg generate --workdir=RUN, which lays the weights out on one device")


def dropped() -> TemporaryFailure:
    """What whoever waits for a text learns that will never be told."""
    return TemporaryFailure("the text was dropped: a step failed, or the weights have changed", "engine", "the same text again")


class Engine:
    """A model ready to generate: weights as they are read, a cache of `num_rows` rows, and the compiled programs."""

    def __init__(
        self,
        config: schema.Config,
        mesh: Mesh,
        params,
        num_ids: int | None = None,
        num_rows: int = 1,
        context: int | None = None,
        laid: spmd.Laid = spmd.Laid(),  # noqa: B008, a constant
        int8_cache: bool = False,
        consume: bool = False,
    ):
        """num_ids: only ids below it are read and drawn, for a tokenizer smaller than the model; none: the model's vocabulary.

        num_rows: texts written at once, rounded up to as many for each group of devices. context: tokens of a text at most; none:
        model.seq_len. consume: as for `laying.lay`. Raises ConfigError for a mesh with pipeline stages, no rows, no context, and one
        beyond learned positions.
        """
        refuse_stages(config)
        for name, value in (("num_rows", num_rows), ("context", context)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is out of range", name, "1 or more")
        self.config, self.mesh, self.laid = config, mesh, laid
        self.context, longest = context or config.model.seq_len, config.model.seq_len
        if config.model.position == "learned" and self.context > longest:
            what = f"a context of {self.context} tokens, and the model has {longest} learned positions"
            raise ConfigError(what, "context", f"{longest} or less")
        self.num_ids = num_ids or config.model.vocab_size
        self.num_groups = config.mesh.num_sample_shards
        self.num_rows = -(-num_rows // self.num_groups) * self.num_groups
        self.programs = Programs(config, mesh, laid, self.num_rows, self.num_ids, int8_cache)
        self._numbers = 0
        self._queue: deque[Text] = deque()
        self._texts: list[Text | None]
        self._lanes: list[Text | None]  # whose prompt is being read, in each group of devices
        self._untold: list[Event]  # of requests that others than the caller of a step wait for
        self._sent: list[tuple[Told, list[tuple[int, Text]]]]  # steps under way, and who gets which of their tokens
        self._used = [0] * self.num_rows  # when each row was last taken
        self.load(params, consume)
        self._active, self._active_rows = None, None
        self.reused_tokens = 0

    def load(self, params: dict, consume: bool = False) -> None:
        """Takes other weights of the same model; the compiled programs stay. What was read with the old ones is dropped, as by `reset`."""
        self.params = lay(self.config, self.mesh, self.laid, params, consume)
        self.reset()

    def forget(self) -> None:
        """What rows hold of earlier prompts is read again when it comes again."""
        self._prefixes: list[list[int]] = [[] for _ in range(self.num_rows)]  # ids that chunks have left in each row

    def unload(self) -> None:
        """Lets the weights, the cache and everything under way go; `load` brings other weights."""
        self.params = None
        self.reset()

    def reset(self) -> None:
        """Drops everything under way, and the cache: after a step that failed."""
        self._queue.clear()
        self._texts = [None] * self.num_rows
        self._lanes = [None] * self.num_groups
        self._sent, self._untold, self._cache, self._rows = [], [], None, None
        self._round_chunks = 0  # still to be read before the next token
        self.forget()

    def check(self, request: Request) -> None:
        """Raises ConfigError for a request that the model cannot honour."""
        if not len(request.prompt):
            raise ConfigError("the prompt has no tokens", "prompt", "at least one token; the end-of-document token starts afresh")
        self.check_ids(request.prompt, "prompt")
        check_settings(request)
        if request.logit_bias:
            self.check_ids(list(request.logit_bias), "logit_bias")
        check_room(request, self.context, self.config.model)

    def check_ids(self, ids: Sequence[int], name: str) -> None:
        """Raises ConfigError for ids that the model, or its tokenizer, does not have."""
        if max(ids) >= self.num_ids or min(ids) < 0:
            raise ConfigError(f"the {name} has ids beyond the vocabulary of {self.num_ids}", name)

    # Requests come and go

    def submit(self, request: Request) -> int:
        """Queues a request and returns its number. Raises ConfigError as `check` does."""
        self.check(request)
        self._numbers += 1
        self._queue.append(Text(self._numbers, request))
        return self._numbers

    def cancel(self, number: int) -> None:
        """Ends a request, if it has not ended: the next step does nothing for it, and its row is free."""
        self._queue = deque(text for text in self._queue if text.number != number)
        self._untold = [event for event in self._untold if event.number != number]
        for text in self._texts:
            if text is not None and text.number == number:
                self._end(text)

    @property
    def drafts(self) -> tuple[int, int] | None:
        """(drafted tokens that were taken, all that were drafted), or None without a draft."""
        return None

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return sum(text is not None for text in self._texts)

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._sent or self._untold or self.num_running)

    def reserve(self, num_tokens: int) -> None:
        """Makes room for texts of that length in every row, as `step` does when one comes."""
        slots = min(chunks.num_slots(self.context), max(chunks.num_slots(num_tokens), FIRST_SLOTS))
        if self._cache is None:
            self._cache, self._rows = self.programs.empty_cache(slots), self.programs.empty_rows()
        elif slots > self._cache.num_slots:
            self._cache = self.programs.grown(self._cache, slots)

    def step(self) -> list[Event]:
        """Reads a chunk of a waiting prompt in each group of devices, writes a token in every row that writes if that ends the round, and
        tells what was written before: the devices are at work meanwhile. One that fails, or is interrupted, drops everything as `reset`."""
        try:
            events, num_sent = [*self._untold, *self._slide()], len(self._sent)
            self._untold = []
            self._take_rows()
            if any(self._lanes):
                self._round_chunks = self._round_chunks or min(self._num_waiting(), ROUND_CHUNKS)
                self._read_chunk()
            self._round_chunks = min(self._round_chunks - 1, self._num_waiting()) if self._round_chunks else 0
            writing = [text for text in self._texts if text is not None and text.writes]
            if writing and not self._round_chunks:
                self._write(writing)
            return events + self._tell(keep=1 if len(self._sent) > num_sent else 0)
        except BaseException:
            self.reset()  # programs may have been given the cache and not have given it back
            raise

    def step_for(self, numbers: Collection[int]) -> list[Event]:
        """`step`, and of its events those of these requests; the others are told when somebody steps for them."""
        events = self.step()
        self._untold += [event for event in events if event.number not in numbers]
        return [event for event in events if event.number in numbers]

    def run(self, requests: Sequence[Request]) -> Iterator[Event]:
        """The events of these requests, numbered from 0 in their order. Closed early, it cancels what has not ended.

        Raises ConfigError for one that cannot be honoured, before any is begun; TemporaryFailure when a step for others failed.
        """
        for request in requests:
            self.check(request)
        places = {self.submit(request): place for place, request in enumerate(requests)}
        going = set(places)
        try:
            while going:
                if not going <= self._numbers_awaited():
                    raise dropped()
                events = self.step_for(places)
                going -= {event.number for event in events if event.finish is not None}
                yield from (event._replace(number=places[event.number]) for event in events)
        finally:
            for number in places:
                self.cancel(number)

    def generate(self, requests: Sequence[Request]) -> list[list[int]]:
        """The new ids of each request, without the stop id that ended it."""
        outputs: list[list[int]] = [[] for _ in requests]
        for number, token, finish, _ in self.run(requests):
            if finish != "stop":
                outputs[number].append(token.id)
        return outputs

    def score(self, ids: Sequence[int], num_likeliest: int) -> list[Token]:
        """Every id with its log-probability after those before it, read as prompts are; the first has none. Rows are left alone.

        Raises ConfigError for ids beyond the vocabulary, and more of them than the context.
        """
        check_settings(Request(ids, num_likeliest=num_likeliest))
        if not 1 <= len(ids) <= self.context:
            raise ConfigError(f"a text of {len(ids)} tokens, where 1 to {self.context} can be read", "text", "a text of such a length")
        self.check_ids(ids, "text")
        told, cache = [Token(int(ids[0]))], self.programs.empty_cache(chunks.num_slots(len(ids)), self.num_groups)
        for start in range(0, len(ids) - 1, caches.BLOCK):
            width = chunks.width(len(ids) - 1 - start)
            tokens_L, next_L = (np.zeros(width, np.int32) for _ in range(2))
            chunk, following = ids[start : start + width], ids[start + 1 : start + 1 + width]
            tokens_L[: len(chunk)], next_L[: len(following)] = chunk, following
            rows = [np.tile(a, (self.num_groups, 1)) for a in (tokens_L, start + np.arange(width, dtype=np.int32), next_L)]
            inputs = self.programs.put((*rows, np.zeros(self.num_groups, np.int32)), spmd.ROWS)
            host, cache = self.programs.forced(self.params, *inputs, cache)
            host = Told(*map(np.asarray, host))
            told += [token_of(host, place, num_likeliest) for place in range(len(following))]
        return told

    def _numbers_awaited(self) -> set[int]:
        """Of the requests of which something has still to be told."""
        texts = (*self._queue, *(text for text in self._texts if text is not None))
        return {one.number for one in (*texts, *self._untold)}

    def _end(self, text: Text) -> None:
        text.ended = True
        self._texts[text.row] = None
        self._lanes = [None if lane is text else lane for lane in self._lanes]

    # Prompts

    def _take_rows(self) -> None:
        """Gives the first of the queue a row, in each group of devices that reads no prompt."""
        for group, lane in enumerate(self._lanes):
            again = [text for text in map(self._texts.__getitem__, self._rows_of(group)) if text is not None and text.reads]
            if lane is None and again:
                lane = self._lanes[group] = again[0]
            free = [row for row in self._rows_of(group) if self._texts[row] is None]
            if lane is None and free and self._queue:
                self._take_row(self._queue.popleft(), group, free)

    def _num_waiting(self) -> int:
        """Prompts that could be read now in the group of devices that has most: in its rows, and of the queue's for which it has one."""
        share = -(-len(self._queue) // self.num_groups)
        groups = ([self._texts[row] for row in self._rows_of(group)] for group in range(self.num_groups))
        return max(sum(text is not None and text.reads for text in own) + min(share, own.count(None)) for own in groups)

    def _rows_of(self, group: int) -> range:
        size = self.num_rows // self.num_groups
        return range(group * size, (group + 1) * size)

    def _take_row(self, text: Text, group: int, free: list[int]) -> None:
        """The free row that holds the longest beginning of the prompt, or else the one not used for longest, into which it is copied."""
        self.reserve(min(len(text.ids) + text.request.max_new_tokens, self.context))
        shared = {row: chunks.num_shared(self._prefixes[row], text.ids) for row in self._rows_of(group)}
        source = max(shared, key=lambda row: (shared[row], row in free, -self._used[row]))
        text.row = source if source in free and shared[source] else min(free, key=lambda row: self._used[row])
        text.num_read = shared[source]
        self.reused_tokens += text.num_read
        if text.row != source and text.num_read:
            size, numbers = self.num_rows // self.num_groups, np.zeros((3, self.num_groups), np.int32)
            numbers[:, group] = source % size, text.row % size, text.num_read // caches.BLOCK
            self._copy_prefix(self.programs.put(tuple(numbers), spmd.ROWS))
        self._prefixes[text.row] = text.ids[: text.num_read]
        self._used[text.row] = max(self._used) + 1
        self._texts[text.row] = self._lanes[group] = text

    def _read_chunk(self) -> None:
        """One chunk for every lane whose next is as long as the oldest one's; the first token of those whose prompt ends with it."""
        width = min((lane for lane in self._lanes if lane is not None), key=lambda lane: lane.number).width
        lanes = [lane if lane is not None and lane.width == width else None for lane in self._lanes]
        shape, size = (self.num_groups, width), self.num_rows // self.num_groups
        tokens_RL, positions_RL = np.zeros(shape, np.int32), np.full(shape, caches.IDLE, np.int32)
        row_R, places_R = np.zeros((2, self.num_groups), np.int32)
        for group, text in enumerate(lanes):
            if text is not None:
                chunk = text.ids[text.num_read : text.num_read + width]
                tokens_RL[group, : len(chunk)] = chunk
                positions_RL[group] = text.num_read + np.arange(width)
                row_R[group], places_R[group] = text.row % size, len(chunk) - 1
        logits_RV = self._read(self.programs.put((tokens_RL, positions_RL, row_R, places_R), spmd.ROWS))
        finished: list[Text | None] = []
        for group, text in enumerate(lanes):
            if text is not None:
                text.num_read = min(text.num_read + width, len(text.ids))
                self._prefixes[text.row] = text.ids[: text.num_read]
            whole = text is not None and text.num_read == len(text.ids)
            finished.append(text if whole else None)
            if whole:
                self._lanes[group], text.reads, text.position = None, False, len(text.ids)
        if any(finished):
            self._begin(finished, logits_RV)

    def _begin(self, texts: list[Text | None], logits_RV) -> None:
        """Draws the first token of those texts, one of each group or none."""
        in_prompt_RV, bias_RV = np.zeros((len(texts), self.num_ids), bool), np.zeros((len(texts), self.num_ids), np.float32)
        for group, text in enumerate(texts):
            if text is not None:
                in_prompt_RV[group, np.asarray(text.request.prompt)] = True
                for id, bias in text.request.logit_bias.items():
                    bias_RV[group, id] = bias
        beginning = Beginning(
            np.array([self.num_rows if text is None else text.row for text in texts], np.int32),
            np.array([0 if text is None else len(text.ids) for text in texts], np.int32),
            np.array([0 if text is None else text.dropped for text in texts], np.int32),
            np.array([text is not None and text.slides > 0 for text in texts]),
            sampling_of([{} if text is None else text.request._asdict() for text in texts]),
            in_prompt_RV,
            bias_RV,
        )
        wanted = any(text is not None and text.request.num_likeliest is not None for text in texts)
        self._rows, told = self.programs.begin(self._rows, logits_RV, self.programs.put(beginning), wanted)
        self._send(told, [(group, text) for group, text in enumerate(texts) if text is not None])

    # Tokens

    def _write(self, writing: list[Text]) -> None:
        """One token more for each of these texts."""
        rows = [text.row for text in writing]
        if rows != self._active_rows:
            self._active_rows, self._active = rows, self.programs.put(np.isin(np.arange(self.num_rows), rows))
        wanted = any(text.request.num_likeliest is not None for text in writing)
        self._send(self._following(wanted), [(text.row, text) for text in writing])
        for text in writing:
            text.position += 1

    def _send(self, told: Told, whose: list[tuple[int, Text]]) -> None:
        for _, text in whose:
            text.num_sent += 1
        self._sent.append((told, whose))

    def _tell(self, keep: int) -> list[Event]:
        """The events of all steps under way but the last `keep`."""
        events = []
        while len(self._sent) > keep:
            told, whose = self._sent.pop(0)
            going = [(place, text) for place, text in whose if not text.ended]
            if going:
                host = jax.device_get(told)
                pairs = ((text, token) for place, text in going for token in self._tokens(host, place, text))
                events += [self._event(text, token) for text, token in pairs if not text.ended]
        return events

    # What `Speculation` does with two models

    def _copy_prefix(self, numbers: tuple) -> None:
        self._cache = self.programs.copy_prefix(self._cache, *numbers)

    def _read(self, inputs: tuple):
        logits_RV, self._cache = self.programs.chunk(self.params, *inputs, self._cache)
        return logits_RV

    def _following(self, with_logprobs: bool) -> Told:
        self._rows, self._cache, told = self.programs.step(self.params, self._rows, self._cache, self._active, with_logprobs)
        return told

    def _tokens(self, host: Told, place: int, text: Text) -> list[Token]:
        return [token_of(host, place, text.request.num_likeliest)]

    def _event(self, text: Text, token: Token) -> Event:
        text.ids.append(token.id)
        text.num_written += 1
        stopped, full = token.id in text.request.stop_ids, text.num_written == text.request.max_new_tokens
        if stopped or full:
            self._end(text)
        return Event(text.number, token, "stop" if stopped else "length" if full else None, text.slides)

    def _slide(self) -> list[Event]:
        """Texts whose last token has no slot go on from their last half: the events of the steps under way, which must be known for it."""
        if not any(text.writes and text.position >= self.context for text in self._texts if text is not None):
            return []
        events = self._tell(keep=0)
        for text in self._texts:
            if text is not None and text.writes and text.position >= self.context:
                text.slide(max(self.context // 2, 1))
                self._prefixes[text.row] = []
        return events
