"""Conversations as the ids that a model was taught to answer, by its own chat template."""

import datetime
import itertools
import json
import re
from typing import Any, NamedTuple

from mtnlg.core import extras
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.data.tokenizer import Tokenizer

_PRIVATE_USE = range(0xE000, 0xF8FF)


class Message(NamedTuple):
    """role: system, user or assistant."""

    role: str
    content: str


class Chat:
    """A tokenizer with a chat template (Jinja's language, as transformers takes it), which runs in a sandbox: it comes with the weights.

    What the template writes may hold special tokens. What a person typed never does: "<|im_end|>" there is ten characters.
    """

    def __init__(self, tokenizer: Tokenizer, where: str):
        """where: of the model, for messages. Raises DataError (no template, or a broken one), ConfigError (jinja2 is not installed)."""
        self._tokenizer, self._where = tokenizer, where
        if tokenizer.companions.template is None:
            cure = "python -m mtnlg generate, or a model with a chat template beside its tokenizer"
            raise DataError("the model has no chat template", where, cure)
        with extras.needed("chat"):
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        extensions = ["jinja2.ext.loopcontrols", _generation()]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda layout: datetime.datetime.now().strftime(layout)}
        self._refused = (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
            AttributeError,
        )
        try:
            self._template = environment.from_string(tokenizer.companions.template)
        except self._refused as error:
            raise self._broken(error) from error

    def encode(self, messages: list[Message]) -> list[int]:
        """The ids of a conversation, up to where the model's answer begins. Raises DataError when the template refuses it.

        As transformers' `apply_chat_template(messages, add_generation_prompt=True)` gives them, but for contents in which the text of a
        special token stands: these are encoded on their own.
        """
        mark = self._unused_letter(messages)
        apart = [message.content for message in messages if any(text in message.content for text in self._tokenizer.special_ids)]
        shown = [m._replace(content=f"{mark}{apart.index(m.content)}{mark}") if m.content in apart else m for m in messages]
        ids = []
        for place, part in enumerate(re.split(f"{mark}([0-9]+){mark}", self._render(shown))):
            ids += self._tokenizer.encode(apart[int(part)]) if place % 2 else self._tokenizer.encode_marked(part)
        return ids

    def encode_latest(self, messages: list[Message], room: int) -> tuple[list[int], list[Message]]:
        """`encode` of what is kept of a conversation, at most `room` ids, and what that is: without its oldest exchanges, where there are
        too many, but with the system messages at its beginning. Raises ConfigError when its last exchange alone has too many ids.
        """
        head = list(itertools.takewhile(lambda message: message.role == "system", messages))
        starts = [place for place, message in enumerate(messages) if message.role == "user" and place > len(head)]
        for start in [len(head), *starts]:
            kept = [*head, *messages[start:]]
            ids = self.encode(kept)
            if len(ids) <= room:
                return ids, kept
        what = f"the last message and what stands before every conversation have {len(ids)} tokens, and there is room for {room}"
        raise ConfigError(what, "messages", "a shorter message, or fewer new tokens")

    def _render(self, messages: list[Message]) -> str:
        try:
            told = [message._asdict() for message in messages]
            tokens = self._tokenizer.companions.tokens
            return self._template.render(messages=told, add_generation_prompt=True, tools=None, documents=None, **tokens)
        except self._refused as error:
            raise self._broken(error) from error

    def _unused_letter(self, messages: list[Message]) -> str:
        """A character that neither the template nor a message has."""
        texts = [self._tokenizer.companions.template, *(message.content for message in messages)]
        free = (chr(code) for code in _PRIVATE_USE if not any(chr(code) in text for text in texts))
        letter = next(free, None)
        if letter is None:
            raise DataError("every character of the private use area is in the conversation", self._where, "a message without them")
        return letter

    def _broken(self, error: Exception) -> DataError:
        what = f"the chat template fails: {type(error).__name__}: {str(error)[:200]}"
        return DataError(what.replace("\n", " "), self._where, "messages that it takes, as user and assistant in turn, or another template")


def _generation() -> type:
    """The tag with which templates mark what a model learns to say; here it only stands around it."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = frozenset({"generation"})

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _refuse(message: str) -> None:
    """What a template calls for a conversation that it does not take."""
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators=None, sort_keys: bool = False) -> str:
    """Jinja's own would write < and > as entities."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
