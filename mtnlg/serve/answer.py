"""OpenAI's response objects, whole and in chunks, for completions and for chat."""

import abc
import base64
import secrets
import time
from collections.abc import Sequence

import numpy as np

from mtnlg.infer.truncate import Cut
from mtnlg.serve import logprobs
from mtnlg.serve.ask import Asked
from mtnlg.serve.writer import Delta, Piece


class Answer(abc.ABC):
    """Of one request for text. Whole: `take` all deltas, then `whole`. In chunks: `first`, `chunk` for each delta, `last`."""

    prefix, kind, chunk_kind = "", "", ""

    def __init__(self, asked: Asked, model: str, echoes: Sequence[tuple[str, Sequence[Piece]]] = ()):
        """echoes: for each prompt its text, which answers begin with, and its tokens when their log-probabilities were asked for."""
        self.asked = asked
        self._model, self._id, self._created = model, f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self._written_tokens = 0
        num_choices = len(asked.prompts) * asked.choices
        self._texts, self._pieces = [[] for _ in range(num_choices)], [[] for _ in range(num_choices)]
        self._finishes, self._slides = ["length"] * num_choices, [0] * num_choices
        for choice in range(num_choices if echoes else 0):
            text, pieces = echoes[choice // asked.choices]
            self._texts[choice].append(text)
            self._pieces[choice].extend(pieces)

    def take(self, delta: Delta) -> None:
        self._texts[delta.choice].append(delta.text)
        self._pieces[delta.choice].extend(delta.pieces)
        self._note(delta)

    def _note(self, delta: Delta) -> None:
        self._written_tokens += len(delta.pieces)
        self._finishes[delta.choice] = delta.finish
        self._slides[delta.choice] = delta.slides

    def whole(self) -> dict:
        choices = [
            self._choice(choice, "".join(texts), pieces, finish)
            for choice, (texts, pieces, finish) in enumerate(zip(self._texts, self._pieces, self._finishes, strict=True))
        ]
        return self._object(self.kind, choices, slides=max(self._slides)) | {"usage": self._usage()}

    @abc.abstractmethod
    def first(self) -> list[dict]:
        """The chunks before anything is written."""

    def chunk(self, delta: Delta) -> dict:
        self._note(delta)
        return self._chunk([self._choice_chunk(delta.choice, delta.text, delta.pieces, delta.finish)], slides=delta.slides)

    def last(self) -> list[dict]:
        """The chunks after everything is written."""
        return [self._object(self.chunk_kind, []) | {"usage": self._usage()}] if self.asked.tells_usage else []

    def _chunk(self, choices: list[dict], slides: int = 0) -> dict:
        return self._object(self.chunk_kind, choices, slides) | ({"usage": None} if self.asked.tells_usage else {})

    def _object(self, kind: str, choices: list[dict], slides: int = 0) -> dict:
        """cut: of the one prompt; of several, each choice tells its own. slides: how often the most of a choice's texts were cut since."""
        told = {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices, "seed": self.asked.seed}
        if len(self.asked.prompts) == 1:
            told |= _cut(self.asked.prompts[0].cut)
        return told | ({"slides": slides} if slides else {})

    def _usage(self) -> dict:
        prompt_tokens = sum(len(prompt.ids) for prompt in self.asked.prompts)
        written = self._written_tokens
        return {"prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written}

    def _with_cut(self, choice: int, told: dict) -> dict:
        return told | (_cut(self.asked.prompts[choice // self.asked.choices].cut) if len(self.asked.prompts) > 1 else {})

    @abc.abstractmethod
    def _choice(self, choice: int, text: str, pieces: Sequence[Piece], finish: str) -> dict:
        """Of an answer that is whole."""

    @abc.abstractmethod
    def _choice_chunk(self, choice: int, text: str, pieces: Sequence[Piece], finish: str | None) -> dict:
        """Of what came with one event."""


class Completion(Answer):
    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self._offsets = [logprobs.Offsets() for _ in self._texts]

    def first(self) -> list[dict]:
        """What is echoed; also when nothing is to be written after it."""
        finish = None if self.asked.job else "length"
        echoed = enumerate(zip(self._texts, self._pieces, strict=True)) if self.asked.echo else ()
        return [self._chunk([self._choice_chunk(choice, "".join(texts), pieces, finish)]) for choice, (texts, pieces) in echoed]

    def _choice(self, choice: int, text: str, pieces: Sequence[Piece], finish: str | None) -> dict:
        told = None if self.asked.num_likeliest is None else logprobs.of_completion(pieces, self._offsets[choice])
        return self._with_cut(choice, {"index": choice, "text": text, "logprobs": told, "finish_reason": finish})

    _choice_chunk = _choice


class Chat(Answer):
    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[dict]:
        said = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": choice, "delta": said, "logprobs": None, "finish_reason": None}]) for choice in range(self.asked.choices)
        ]

    def _choice(self, choice: int, text: str, pieces: Sequence[Piece], finish: str) -> dict:
        said = {"role": "assistant", "content": text, "refusal": None}
        return {"index": choice, "message": said, "logprobs": self._logprobs(pieces), "finish_reason": finish}

    def _choice_chunk(self, choice: int, text: str, pieces: Sequence[Piece], finish: str | None) -> dict:
        return {
            "index": choice,
            "delta": {"content": text} if text else {},
            "logprobs": self._logprobs(pieces) if pieces else None,
            "finish_reason": finish,
        }

    def _logprobs(self, pieces: Sequence[Piece]) -> dict | None:
        return None if self.asked.num_likeliest is None else logprobs.of_chat(pieces)


def _cut(cut: Cut | None) -> dict:
    return {} if cut is None else {"cut": {"from": cut.begin, "to": cut.end}}


def vectors(vectors_TD: np.ndarray, num_tokens: int, model: str, as_base64: bool) -> dict:
    """The answer of /v1/embeddings: [T, D] for T texts."""
    rows = np.asarray(vectors_TD, "<f4")
    told = [base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist() for row in rows]
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(told)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens}}
