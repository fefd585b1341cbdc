"""A trained model to work with: text in, text, vectors and scores out."""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtnlg import engines, pretrained
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.infer import int8_parts
from mtnlg.infer.beam import Beams
from mtnlg.infer.engine import Engine
from mtnlg.infer.int8_cost import Cost
from mtnlg.infer.request import Request, Token, request_with
from mtnlg.infer.scorer import Scorer
from mtnlg.infer.truncate import Cut, check_policy, fit
from mtnlg.text_engine import TextEngine, Written

# What belongs to an `Ask` and not to its settings, and how it is asked.
_OF_ASK = {name: f"lm.answer(prompt, {name}={value})" for name, value in (("stop", '["TEXT"]'), ("truncate", '"left"'), ("keep", "4"))}


def from_pretrained(
    path: str | os.PathLike,
    mesh: schema.Mesh | None = None,
    dtype: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    num_rows: int = 1,
    context: int | None = None,
    int8: str | Sequence[str] = (),
    int8_text: str | os.PathLike | None = None,
    rope_scaling: str = "none",
    draft: str | os.PathLike | None = None,
    num_drafted: int = 4,
    unroll_layers: bool | None = None,
) -> "LanguageModel":
    """The model of a run's folder (its newest checkpoint), of one `checkpoints/STEP`, of a folder as Hugging Face's transformers saves it,
    of a GGUF file or a Megatron-LM checkpoint, on a mesh of its own; None: one device. Every device reads only what it holds.

    dtype: float32, bfloat16, float16 or float64, which weights lie and are computed with in; None: train.compute_dtype of the run; of
    others bfloat16 if their numbers are, else float32. tokenizer: a path; None: the one that came with the weights. num_rows: texts written
    at once. context: tokens of a text at most; None: what the model has learnt from at a time. int8: "weights" and "cache", or a text of
    them with commas: which to keep in eight bits; what that costs is measured on a text of the model's own, or on the file `int8_text`.
    rope_scaling: as for `stretch.stretched`. draft: a smaller model with the same tokenizer, which drafts `num_drafted` tokens a step:
    texts come sooner and are distributed as without (`infer.speculative`). unroll_layers: every layer is compiled on its own; None: on a
    CPU, for several texts at once (see `engines.Settings`). The mesh of the training does not matter. Of this one mesh.zero does not:
    the weights lie once, as they are computed with.

    Raises MissingInput (no weights or tokenizer there), DataError (damaged, unknown, of another version, or the tokenizer is not the one
    trained with) or ConfigError (a mesh, a context, a scaling, a draft or a float64 that cannot be honoured here).
    """
    model = pretrained.open_model(path, tokenizer)
    settings = engines.Settings(num_rows, context, int8_parts.named(int8), int8_text, rope_scaling, unroll_layers)
    small = None if draft is None else engines.Draft(pretrained.open_model(draft), num_drafted)
    made = engines.make(model, mesh or schema.Mesh(), dtype, settings, small)
    return LanguageModel(model.tokenizer, made.engine, model.where, made.notes, made.int8_cost, small and (small.model.where, num_drafted))


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What the model reads before it goes on: the text behind what texts begin with, or the end of a document, which starts afresh."""
    return [*tokenizer.start_ids, *tokenizer.encode(prompt)] or [tokenizer.eod_id]


def require_room_for_samples(config: schema.Config, tokenizer: Tokenizer) -> None:
    """Raises ConfigError for a prompt of a run's samples whose continuation would not fit into the sequence length."""
    new, seq_len = config.sample.max_new_tokens, config.model.seq_len
    for prompt in config.sample.prompts:
        length = len(prompt_ids(tokenizer, prompt))
        if length + new > seq_len:
            what = f"sample.max_new_tokens={new} after a prompt of {length} tokens exceed model.seq_len={seq_len}"
            cure = f"--config.sample.max_new_tokens={seq_len - length} or a shorter prompt" if length < seq_len else "a shorter prompt"
            raise ConfigError(what, f"sample.prompts: {prompt[:40]!r}", cure)


def continuations(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[int]]:
    """(ids, where the continuation begins in them) of pairs (prompt, continuation), behind what texts begin with or an end of document.

    Both are encoded as one text; a token with bytes of both is the continuation's. Where a tokenizer changes the prompt because of
    what follows it (it composes characters, say), they are encoded apart. Raises DataError for a continuation without tokens.
    """
    start, rows, firsts = list(tokenizer.start_ids) or [tokenizer.eod_id], [], []
    wholes = tokenizer.encode_batch([prompt + continuation for prompt, continuation in pairs])
    prompts = tokenizer.encode_batch([prompt for prompt, _ in pairs])
    for (_, continuation), ids, before in zip(pairs, wholes, prompts, strict=True):
        prompt_bytes, first = tokenizer.decode_bytes(before), len(before)
        if tokenizer.decode_bytes(ids).startswith(prompt_bytes):
            first = int(np.searchsorted(np.cumsum(tokenizer.piece_bytes[ids]), len(prompt_bytes), side="right"))
        else:
            ids = before + tokenizer.encode(continuation)
        if first == len(ids):
            raise DataError(f"there are no tokens to score in {continuation[:40]!r}", "text", "a text that is not empty")
        rows.append(start + ids)
        firsts.append(len(start) + first)
    return rows, firsts


class LanguageModel:
    """A tokenizer and an engine. `generate` works on ids, everything else on text.

    where: of the weights. notes: lines that whoever uses the model should read. int8_cost: None where all is exact. draft: where a
    draft's weights come from and how many tokens it drafts at a time, if there is one.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        engine: Engine,
        where: str = "",
        notes: Sequence[str] = (),
        int8_cost: Cost | None = None,
        draft: tuple[str, int] | None = None,
    ):
        self.tokenizer, self.engine, self.texts = tokenizer, engine, TextEngine(tokenizer, engine)
        self.where, self.notes, self.int8_cost, self.draft = where, tuple(notes), int8_cost, draft
        self._beams: dict[int, Beams] = {}  # by their width; each has programs of its own

    @functools.cached_property
    def scorer(self) -> Scorer:
        """For scores of ids, whether they are the likeliest ones, and for batches of them."""
        return Scorer(self.engine)

    @property
    def drafts(self) -> tuple[int, int] | None:
        """(tokens of the draft that were taken, all that it drafted), or None without a draft."""
        return self.engine.drafts

    @property
    def seq_len(self) -> int:
        """Tokens at a time that the model has learnt from."""
        return self.engine.config.model.seq_len

    def prompt_ids(self, text: str) -> list[int]:
        """What `generate` goes on from as `complete` does: the text behind what texts begin with, which `tokenizer.encode` leaves out."""
        return prompt_ids(self.tokenizer, text)

    def generate(self, ids: Sequence[int], **sampling) -> list[int]:
        """The new ids after `ids`, as they are, up to the end of the text.

        sampling: the other fields of `request.Request`: max_new_tokens=64, temperature=0.8 (0: always the likeliest), top_p=0.95, seed=0
        and more. Raises ConfigError.
        """
        if isinstance(ids, str):
            raise ConfigError("a text where ids are expected", "ids", "lm.complete(text), or lm.generate(lm.prompt_ids(text))")
        settings = {"stop_ids": self.tokenizer.end_ids} | sampling
        return self.engine.generate([request_with([int(id) for id in ids], settings, _OF_ASK)])[0]

    def score(self, prompt: str, continuation: str) -> float:
        """The log-probability, in nats, of the continuation after the prompt: the sum over its tokens, as `continuations` tells them.

        Both may be of any length; see `infer.scorer` for more than model.seq_len tokens. Raises DataError.
        """
        return self.score_many([(prompt, continuation)])[0]

    def score_many(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """`score` of many pairs (prompt, continuation), batched."""
        return [-float(scores.nll.sum()) for scores in self.scorer.scores(*continuations(self.tokenizer, pairs))]

    def loss(self, text: str) -> float:
        """Nats per token of a text of any length, of which the first token counts too. Raises DataError for an empty one."""
        return float(self.scorer.scores(*continuations(self.tokenizer, [("", text)]))[0].nll.mean())

    def encode(self, texts: Sequence[str], pool: str = "mean") -> np.ndarray:
        """[texts, D] float32: hidden states after the final norm, their mean over a text's tokens, or the last token's.

        pool: mean or last. What texts begin with is read, but not counted. Raises DataError for a text without tokens.
        """
        if pool not in ("mean", "last"):
            raise ConfigError(f"pool={pool!r} is not one of mean, last", "pool")
        if isinstance(texts, str):
            raise ConfigError("one text where several are expected", "texts", "encode([text])")
        start = list(self.tokenizer.start_ids)
        rows = [start + ids for ids in self.tokenizer.encode_batch(list(texts))]
        for number, ids in enumerate(rows):
            if len(ids) == len(start):
                raise DataError(f"text {number} has no tokens", "texts", "texts that are not empty")
        return self.scorer.means(rows, [len(start) if pool == "mean" else len(ids) - 1 for ids in rows])

    def answer(
        self, prompt: str | Sequence[int], stop: str | Sequence[str] = (), truncate: str = "error", keep: int | None = None, **sampling
    ) -> "Answer":
        """What follows a text, or ids as they are, with all that is known of it: see `Ask`. Raises ConfigError."""
        ((_, answer),) = self.answer_many([Ask(prompt, stop, truncate, keep, sampling)])
        return answer

    def answer_many(self, asks: Iterable["Ask"]) -> Iterator[tuple[int, "Answer"]]:
        """(number, answer) of each, as they end; as many at once as the engine has rows. Closed early, it cancels what is under way.

        An ask is taken when its turn is near: raises ConfigError then for one that cannot be honoured.
        """
        waiting, going = enumerate(asks), {}
        try:
            while True:
                for number, ask in itertools.islice(waiting, 2 * self.engine.num_rows - len(going)):
                    request, cut = self.request_of(ask)
                    going[self.texts.submit(request, ask.stop)] = number, cut, []
                if not going:
                    return
                for written in self.texts.step_for(going):
                    number, cut, told = going[written.number]
                    told.append(written)
                    if written.finish is not None:
                        del going[written.number]
                        text, tokens = "".join(one.text for one in told), [one.token for one in told]
                        yield number, Answer(text, tokens, written.finish, cut, written.slides)
        finally:
            for number in going:
                self.texts.cancel(number)

    def complete(self, prompt: str, stop: str | Sequence[str] = (), **sampling) -> str:
        """The text that follows the prompt."""
        return "".join(self.stream(prompt, stop, **sampling))

    def stream(self, prompt: str | Sequence[int], stop: str | Sequence[str] = (), **sampling) -> Iterator[str]:
        """The text that follows a text, or ids as they are, piece by piece; ends before the first stop string or where the model ends.

        A piece is given out when it is whole UTF-8 and can no longer become part of a stop string.
        """
        request, _ = self.request_of(Ask(prompt, sampling=sampling))
        with contextlib.closing(self.write(request, stop)) as told:
            yield from (written.text for written in told if written.text)

    def beam_search(
        self, prompt: str | Sequence[int], width: int, max_new_tokens: int = 64, length_penalty: float = 1.0
    ) -> list[tuple[str, float]]:
        """At most `width` texts that follow a text, or ids as they are, with their log-probabilities, best first: see `infer.beam`.

        Raises ConfigError.
        """
        ids = self.request_of(Ask(prompt))[0].prompt
        if width not in self._beams:
            self._beams[width] = Beams(self.engine, width)
        found = self._beams[width].search(ids, max_new_tokens, self.tokenizer.end_ids, length_penalty)
        return [(self.tokenizer.decode(hypothesis.ids), hypothesis.logprob) for hypothesis in found]

    def request_of(self, ask: "Ask") -> tuple[Request, Cut | None]:
        """What the engine is asked, which still has to check it, and what was cut out of the prompt. Raises ConfigError as `fit` does."""
        check_policy(ask.truncate, ask.keep)
        is_text = isinstance(ask.prompt, str)
        ids = self.prompt_ids(ask.prompt) if is_text else [int(id) for id in ask.prompt]
        asked, cut = request_with(ids, ask.sampling, _OF_ASK), None
        if ask.truncate != "error":
            room = self.engine.context - (1 if asked.slide else asked.max_new_tokens)
            if room < 1:
                what = f"{asked.max_new_tokens} new tokens leave no room in a context of {self.engine.context}"
                raise ConfigError(what, "max_new_tokens", f"{self.engine.context - 1} or less")
            keep = ask.keep if ask.keep is not None else len(self.prompt_ids("")) if is_text else 0
            ids, cut = fit(ids, room, ask.truncate, keep)
            asked = asked._replace(prompt=ids)
        return asked, cut

    def write(self, request: Request, stop: str | Sequence[str] = ()) -> Iterator[Written]:
        """Token by token; closed early, it is cancelled. Raises ConfigError before the first one."""
        number = self.texts.submit(request, stop)
        try:
            finish = None
            while finish is None:
                for written in self.texts.step_for([number]):
                    finish = written.finish
                    yield written
        finally:
            self.texts.cancel(number)


class Ask(NamedTuple):
    """A prompt, text or ids as they are, and how to continue it.

    truncate, keep: what is cut out of a prompt that leaves no room, as in `infer.truncate`; keep None: what texts begin with. sampling:
    the other fields of `request.Request`.
    """

    prompt: str | Sequence[int]
    stop: str | Sequence[str] = ()
    truncate: str = "error"
    keep: int | None = None
    sampling: Mapping[str, Any] = {}


class Answer(NamedTuple):
    """A text, its tokens, why it ended ("stop" or "length"), which ids of the prompt were cut out, and how often its beginning was dropped.

    The token that ended it is the last one, and not in the text.
    """

    text: str
    tokens: list[Token]
    finish: str
    cut: Cut | None
    slides: int
