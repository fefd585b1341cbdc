"""Many prompts out of a file of JSON lines, and their texts into another, which goes on where an earlier start was stopped."""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mtnlg.core import files, lock, strict_json
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput, MtnlgError
from mtnlg.data.chat import Chat, Message
from mtnlg.infer.request import Request, check_settings
from mtnlg.infer.truncate import POLICIES
from mtnlg.lm import Answer, Ask, LanguageModel
from mtnlg.run.progress import Progress

MADE = ".made.json"  # after the output's name: what it was made of
_NAMED_BY = "--out"
_ROLES = ("system", "user", "assistant")


class Line(NamedTuple):
    """number: from 1. told: the fields that the output repeats. prompt: a text or a conversation. ask: its settings, with no prompt yet."""

    number: int
    told: dict[str, Any]
    prompt: str | list[Message]
    ask: Ask


class Lines(NamedTuple):
    path: str
    sha256: str
    defaults: Mapping[str, Any]
    lines: list[Line]


def _whole(value) -> bool:
    return type(value) is int


def _number(value) -> bool:
    return type(value) in (int, float)


def _text(value) -> bool:
    return isinstance(value, str)


def _many(good: Callable) -> Callable:
    return lambda value: isinstance(value, list) and all(map(good, value))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (_whole, "a whole number") for name in ("max_new_tokens", "top_k", "seed", "num_likeliest", "keep")},
    **{name: (_number, "a number") for name in ("temperature", "top_p", "min_p")},
    **{name: (_number, "a number") for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")},
    "logit_bias": (
        lambda value: isinstance(value, dict) and all(id.isdecimal() and id.isascii() and _number(bias) for id, bias in value.items()),
        "an object of numbers by token ids",
    ),
    "stop": (lambda value: _text(value) or _many(_text)(value), "a text or a list of texts"),
    "stop_ids": (_many(_whole), "a list of token ids"),
    "slide": (lambda value: type(value) is bool, "true or false"),
    "truncate": (lambda value: value in POLICIES, f"one of {', '.join(POLICIES)}"),
    "prompt": (_text, "a text"),
    "messages": (
        lambda value: (
            _many(
                lambda one: isinstance(one, dict) and set(one) == {"role", "content"} and one["role"] in _ROLES and _text(one["content"])
            )(value)
            and len(value) > 0
        ),
        f"a list of objects with a role ({', '.join(_ROLES)}) and a content",
    ),
    "id": (lambda value: True, ""),
}
_OF_ASK = ("stop", "truncate", "keep")


def read(path: str | os.PathLike, defaults: Mapping[str, Any]) -> Lines:
    """The prompts of a file, each with its own settings and those of `defaults`: fields of a `Request` and an `Ask`.

    Raises MissingInput, and DataError for a line that is not what it should be.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise MissingInput(f"the prompts cannot be read: {error.strerror}", str(path), "a file with a JSON object a line") from error
    numbered = [(number, text) for number, text in enumerate(content.split(b"\n"), 1) if text.strip()]
    lines = [_line(f"{path}:{number}", number, place, text, defaults) for place, (number, text) in enumerate(numbered)]
    if not lines:
        raise DataError("there are no prompts", str(path), 'lines as {"prompt": "Once upon a time"}')
    return Lines(str(path), hashlib.sha256(content).hexdigest(), defaults, lines)


def _line(where: str, number: int, place: int, content: bytes, defaults: Mapping[str, Any]) -> Line:
    try:
        given = strict_json.read(content)
    except strict_json.NotStrict as error:
        raise DataError(f"the line {error}", where, 'a line as {"prompt": "Once upon a time"}') from None
    for name, value in given.items():
        if name not in _FIELDS:
            raise DataError(f"there is no field {name[:40]!r}", where, f"one of {', '.join(_FIELDS)}")
        good, kind = _FIELDS[name]
        if not good(value):
            raise DataError(f"the field {name!r} is not {kind}", where, kind)
    if ("prompt" in given) == ("messages" in given):
        raise DataError("there is not one prompt", where, "either prompt or messages")
    prompt = given.get("prompt") if "prompt" in given else [Message(**one) for one in given["messages"]]
    found = {"seed": (defaults["seed"] + place) % 2**32} | {name: given[name] for name in _FIELDS if name in given}
    found = {**defaults, **{name: value for name, value in found.items() if name not in ("prompt", "messages", "id")}}
    found["logit_bias"] = {int(id): bias for id, bias in found["logit_bias"].items()}
    found["stop_ids"] = frozenset(found["stop_ids"])
    found["stop"] = [found["stop"]] if isinstance(found["stop"], str) else found["stop"]
    ask = Ask((), *(found.pop(name) for name in _OF_ASK), found)
    if ask.truncate == "middle" and "messages" in given:
        raise DataError("a conversation is cut at its oldest exchanges only", where, "truncate left")
    try:
        check_settings(Request((), **ask.sampling))
    except ConfigError as error:
        raise DataError(f"{error.what}", where, error.cure) from None
    return Line(number, {"line": number} | ({"id": given["id"]} if "id" in given else {}), prompt, ask)


def write(model: LanguageModel, lines: Lines, output: str | os.PathLike, num_texts: int = 1, stream=None) -> None:
    """Adds `num_texts` texts of every prompt to the file `output`, as they end: all that are not there yet. stream: for the progress.

    Raises DataError for a prompt that the model cannot honour, before anything is written, and for an output that is damaged; ConfigError
    for one that was made of other prompts or with other settings; CannotWrite, TemporaryFailure.
    """
    output, prompts = pathlib.Path(output), Prompts(model, lines)
    for line in lines.lines:
        prompts.check(line)
    with lock.held(f"{output}.lock", lambda owner: _busy(output, owner)):
        done = _go_on(output, _made(model, lines, num_texts))
        missing = [(line, choice) for line in lines.lines for choice in range(num_texts) if (line.number, choice) not in done]
        total, file, began_secs, num_tokens = len(lines.lines) * num_texts, files.AppendFile(output), time.monotonic(), 0
        with contextlib.closing(file), Progress(total, total - len(missing), max(total // 20, 1), stream, unit="text") as progress:
            for count, (number, answer) in enumerate(model.answer_many(prompts.asks(missing)), total - len(missing) + 1):
                line, choice = missing[number]
                told = line.told | ({"choice": choice} if num_texts > 1 else {}) | _told(model, answer) | prompts.told(line)
                file.append(json.dumps(told, ensure_ascii=False).encode() + b"\n")
                num_tokens += len(answer.tokens)
                progress.update(count, tokens_per_sec=num_tokens / max(time.monotonic() - began_secs, 1e-9))
            file.sync()


class Prompts:
    """Lines as what a model is asked."""

    def __init__(self, model: LanguageModel, lines: Lines):
        self._model, self._path = model, lines.path
        self._chat = Chat(model.tokenizer, model.where) if any(isinstance(line.prompt, list) for line in lines.lines) else None

    def ask(self, line: Line) -> tuple[Ask, int]:
        """What is asked, and how many messages were dropped for it. Raises ConfigError, DataError."""
        if isinstance(line.prompt, str):
            return line.ask._replace(prompt=line.prompt), 0
        if line.ask.truncate == "error":
            return line.ask._replace(prompt=self._chat.encode(line.prompt)), 0
        slides = line.ask.sampling["slide"]
        room = self._model.engine.context - (1 if slides else line.ask.sampling["max_new_tokens"])
        ids, kept = self._chat.encode_latest(line.prompt, room)
        return line.ask._replace(prompt=ids), len(line.prompt) - len(kept)

    def asks(self, missing: list[tuple[Line, int]]) -> Iterator[Ask]:
        """One for each text, of which the first of a line has the line's seed."""
        for line, choice in missing:
            ask, _ = self.ask(line)
            yield ask._replace(sampling={**ask.sampling, "seed": (ask.sampling["seed"] + choice) % 2**32})

    def check(self, line: Line) -> None:
        """Raises DataError for a line that the model cannot honour."""
        try:
            request, _ = self._model.request_of(self.ask(line)[0])
            self._model.engine.check(request)
        except MtnlgError as error:
            raise DataError(error.what, f"{self._path}:{line.number}", error.cure) from None

    def told(self, line: Line) -> dict[str, Any]:
        """Of a conversation, how many of its messages were not read."""
        dropped = self.ask(line)[1]
        return {"dropped_messages": dropped} if dropped else {}


def _told(model: LanguageModel, answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"text": answer.text, "finish": answer.finish, "num_tokens": len(answer.tokens)}
    found |= {"cut": list(answer.cut)} if answer.cut else {}
    found |= {"slides": answer.slides} if answer.slides else {}
    if answer.tokens[0].logprob is not None:
        shown = lambda id: model.tokenizer.decode_bytes([id]).decode(errors="replace")  # noqa: E731
        found["logprobs"] = [
            {"id": id, "token": shown(id), "logprob": logprob, "likeliest": [[other, shown(other), value] for other, value in likeliest]}
            for id, logprob, likeliest in answer.tokens
        ]
    return found


def _made(model: LanguageModel, lines: Lines, num_texts: int) -> dict[str, Any]:
    """What the texts depend on, but for the number of rows."""
    scaling = {"rope_scaling": model.engine.config.model.rope_scaling, "rope_scaling_factor": model.engine.config.model.rope_scaling_factor}
    int8 = {"int8_weights": model.engine.laid.int8, "int8_cache": model.engine.programs.int8_cache, "draft": model.draft}
    settings = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in lines.defaults.items()}
    whole = {"prompts": lines.sha256, "model": model.where, "context": model.engine.context, "n": num_texts, **scaling, **int8, **settings}
    return json.loads(json.dumps(whole))


def _go_on(output: pathlib.Path, made: dict[str, Any]) -> set[tuple[int, int]]:
    """(line, choice) of the texts that are there. A last line that was cut off is taken away; without texts, `made` is written."""
    note = output.with_name(output.name + MADE)
    with files.writing(output, named_by=_NAMED_BY):
        content = output.read_bytes() if output.exists() else b""
    if not content:
        files.write_atomic(note, json.dumps(made, indent=2) + "\n", _NAMED_BY)
        return set()
    if not note.is_file():
        raise CannotWrite(f"the file is there, and was not made by this command: {note.name} is missing", str(output), "another --out")
    try:
        before = strict_json.read(note.read_bytes())
    except (OSError, strict_json.NotStrict):
        raise DataError("it cannot be read, what the texts were made of", str(note), "another --out") from None
    changed = [name for name in {**made, **before} if before.get(name) != made.get(name)]
    if changed:
        name = changed[0]
        what = f"its texts were made with other settings: {name} was {_short(before.get(name))} and is {_short(made.get(name))}"
        raise ConfigError(what, str(output), "what it was made with, or another --out")
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with files.writing(output, named_by=_NAMED_BY):
            os.truncate(output, whole)
    return {_done(f"{output}:{number}", line) for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1)}


def _done(where: str, content: bytes) -> tuple[int, int]:
    try:
        found = strict_json.read(content)
        return int(found["line"]), int(found.get("choice", 0))
    except (strict_json.NotStrict, LookupError, TypeError, ValueError):
        raise DataError("the line is damaged", where, "the file without it, and the same command again") from None


def _busy(output: pathlib.Path, owner: str) -> None:
    raise CannotWrite(f"another process writes it: {owner}", str(output), "waiting for it, or another --out")


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:36]} ..."
