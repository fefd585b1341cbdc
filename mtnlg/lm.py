"""A trained model to work with: text in, text, vectors and scores out."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtnlg import pretrained
from mtnlg.core import config as configs
from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.infer.engine import Engine, refuse_stages
from mtnlg.infer.request import Request, Token
from mtnlg.infer.scorer import Scorer
from mtnlg.infer.truncate import Cut, fit
from mtnlg.parallel import mesh as meshes
from mtnlg.spmd import Laid
from mtnlg.text_engine import TextEngine, Written


def from_pretrained(
    path: str | os.PathLike,
    mesh: schema.Mesh | None = None,
    dtype: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    num_rows: int = 1,
    context: int | None = None,
    int8: Sequence[str] = (),
) -> "LanguageModel":
    """The model of a run's folder (its newest checkpoint), of one `checkpoints/STEP`, of a folder as Hugging Face's transformers saves it,
    of a GGUF file or a Megatron-LM checkpoint, on a mesh of its own; None: one device. Every device reads only what it holds.

    dtype: float32, bfloat16 or float64, which weights lie and are computed with in; None: train.compute_dtype of the run; of others
    bfloat16 if their numbers are, else float32. tokenizer: a path; None: the one that came with the weights. num_rows: texts written at
    once. context: tokens of a text at most; None: what the model has learnt from at a time. int8: "weights" and "cache", which to keep
    in eight bits. The mesh of the training does not matter. Of this one mesh.zero does not: the weights lie once, as they are computed
    with.

    Raises MissingInput (no weights or tokenizer there), DataError (damaged, unknown, of another version, or the tokenizer is not the one
    trained with) or ConfigError (a mesh, a context or a float64 that cannot be honoured here).
    """
    model = pretrained.open_model(path, tokenizer)
    values = configs.to_flat(model.config) | ({} if dtype is None else {"train.compute_dtype": dtype})
    config = dataclasses.replace(configs.from_flat(values), mesh=dataclasses.replace(mesh or schema.Mesh(), zero=0))
    configs.require_none(validate.mesh_problems(config), model.where)
    refuse_stages(config)
    if unknown := set(int8) - {"weights", "cache"}:
        raise ConfigError(f"{', '.join(sorted(unknown))} cannot be kept in eight bits", "int8", "weights, cache or both")
    if config.train.compute_dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("computing in float64 needs 64-bit mode", "dtype=float64", "JAX_ENABLE_X64=1 before the command")
    made = meshes.make(config.mesh)
    # On a CPU, a layer taken out of a stack is copied: that costs more than what is then computed with it.
    laid = Laid(apart=jax.default_backend() == "cpu", int8="weights" in int8)
    settings = {"num_rows": num_rows, "context": context, "laid": laid, "int8_cache": "cache" in int8, "consume": True}
    engine = Engine(config, made, model.load_params(config, made), model.tokenizer.vocab_size, **settings)
    return LanguageModel(model.tokenizer, engine)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """What the model reads before it goes on: the text behind what texts begin with, or the end of a document, which starts afresh."""
    return [*tokenizer.start_ids, *tokenizer.encode(prompt)] or [tokenizer.eod_id]


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
    """A tokenizer and an engine. `generate` works on ids, everything else on text."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine):
        self.tokenizer, self.engine, self.texts = tokenizer, engine, TextEngine(tokenizer, engine)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """For scores of ids, whether they are the likeliest ones, and for batches of them."""
        return Scorer(self.engine)

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
        return self.engine.generate([Request([int(id) for id in ids], **{"stop_ids": self.tokenizer.end_ids} | sampling)])[0]

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

    def answer(self, prompt: str | Sequence[int], stop: Sequence[str] = (), truncate: str = "error", keep: int = 0, **sampling) -> "Answer":
        """What follows a text, or ids as they are, with all that is known of it.

        truncate, keep: what is cut out of a prompt that leaves no room, as in `infer.truncate`. sampling: the fields of `request.Request`.
        Raises ConfigError.
        """
        ids, cut = self._prompt(prompt), None
        if truncate != "error" or keep:
            ids, cut = fit(
                ids, self.engine.context - sampling.get("max_new_tokens", Request._field_defaults["max_new_tokens"]), truncate, keep
            )
        told = list(self._write(ids, stop, sampling))
        text, tokens = "".join(written.text for written in told), [written.token for written in told]
        return Answer(text, tokens, told[-1].finish, cut, told[-1].slides)

    def complete(self, prompt: str, stop: Sequence[str] = (), **sampling) -> str:
        """The text that follows the prompt."""
        return "".join(self.stream(prompt, stop, **sampling))

    def stream(self, prompt: str | Sequence[int], stop: Sequence[str] = (), **sampling) -> Iterator[str]:
        """The text that follows a text, or ids as they are, piece by piece; ends before the first stop string or where the model ends.

        A piece is given out when it is whole UTF-8 and can no longer become part of a stop string.
        """
        return (written.text for written in self._write(self._prompt(prompt), stop, sampling) if written.text)

    def _prompt(self, prompt: str | Sequence[int]) -> list[int]:
        return self.prompt_ids(prompt) if isinstance(prompt, str) else [int(id) for id in prompt]

    def _write(self, ids: list[int], stop: Sequence[str], sampling: dict) -> Iterator[Written]:
        number = self.texts.submit(Request(ids, **sampling), stop)
        try:
            finish = None
            while finish is None:
                for written in self.texts.step():
                    if written.number == number:
                        finish = written.finish
                        yield written
        finally:
            self.texts.cancel(number)


class Answer(NamedTuple):
    """A text, its tokens, why it ended ("stop" or "length"), which ids of the prompt were cut out, and how often its beginning was dropped.

    The token that ended it is the last one, and not in the text.
    """

    text: str
    tokens: list[Token]
    finish: str
    cut: Cut | None
    slides: int
