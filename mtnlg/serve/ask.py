"""From a request's body to what a Writer is asked."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from mtnlg.core import strict_json
from mtnlg.core.errors import MtnlgError
from mtnlg.data.chat import Message
from mtnlg.infer.request import Request
from mtnlg.infer.truncate import Cut, fit
from mtnlg.serve import fields, refusal, schema
from mtnlg.serve.limits import Limits
from mtnlg.serve.refusal import Refusal, bad
from mtnlg.serve.writer import Job, Writer

_SEEDS = 2**32
_SHOWN_CHARS = 80  # of what a client has sent


@dataclass(frozen=True)
class Prompt:
    """ids: what is read of it; text: as it was sent, None for ids and conversations; cut: what is not read."""

    ids: list[int]
    text: str | None = None
    cut: Cut | None = None


@dataclass(frozen=True)
class Asked:
    """A request for text. job None: prompts are scored and nothing is written. num_likeliest: as Request's."""

    prompts: tuple[Prompt, ...]
    choices: int  # of each prompt
    job: Job | None
    seed: int
    num_likeliest: int | None
    stream: bool
    tells_usage: bool
    echo: bool = False


def completion(body: bytes, writer: Writer, limits: Limits) -> Asked:
    """Of POST /v1/completions. Raises Refusal."""
    given = _read(body, schema.completion(limits), writer)
    if not given["max_tokens"] and not given["echo"]:
        raise bad("`max_tokens` must be 1 or more, unless `echo` is true", "max_tokens")
    prompts = tuple(_completion_prompt(prompt, given, writer) for prompt in given["prompt"])
    return _asked(given, prompts, given["max_tokens"], given["logprobs"], writer, limits)


def chat(body: bytes, writer: Writer, limits: Limits) -> Asked:
    """Of POST /v1/chat/completions. Raises Refusal."""
    given = _read(body, schema.chat(limits), writer)
    if not writer.can_chat:
        raise bad("the model has no chat template; /v1/completions continues a text", "messages", "no_chat_template")
    if given["top_logprobs"] is not None and not given["logprobs"]:
        raise bad("`top_logprobs` needs `logprobs` to be true", "top_logprobs")
    if None not in (given["max_tokens"], given["max_completion_tokens"]):
        raise bad("`max_tokens` and `max_completion_tokens` are two names of one thing", "max_tokens")
    messages = [Message(role, content) for role, content in given["messages"]]
    ids = _of_writer(writer.chat_ids, messages, param="messages")
    max_tokens = given["max_completion_tokens"] or given["max_tokens"]
    if max_tokens is None:
        # A prompt that may be cut leaves a quarter of the context to the answer.
        least = 1 if given["truncate"] == "error" else max(1, writer.context // 4)
        max_tokens = min(limits.answer_tokens, max(writer.context - len(ids), least))
    keep = given["keep"]
    if keep is None and given["truncate"] != "error":
        keep = _system_length(ids, messages, writer)
    ids, cut = _fit(ids, max_tokens, keep, given, writer, "messages")
    num_likeliest = (given["top_logprobs"] or 0) if given["logprobs"] else None
    return _asked(given, (Prompt(ids, cut=cut),), max_tokens, num_likeliest, writer, limits)


def embeddings(body: bytes, writer: Writer, limits: Limits) -> tuple[list[str], bool]:
    """Of POST /v1/embeddings: (texts, whether as base64). Raises Refusal."""
    given = _read(body, schema.embeddings(limits), writer)
    if sum(len(_of_writer(writer.prompt_ids, text, param="input")) for text in given["input"]) > limits.request_tokens:
        raise bad(f"the texts have more than {limits.request_tokens} tokens together", "input")
    return given["input"], given["encoding_format"] == "base64"


def _read(body: bytes, known: dict, writer: Writer) -> dict:
    try:
        given = fields.read(strict_json.read(body), known)
    except strict_json.NotStrict as error:
        raise bad(f"the body {error}", code="invalid_json") from None
    check_model(given["model"], writer)
    if given.get("stream_options") is not None and not given["stream"]:
        raise bad("`stream_options` needs `stream` to be true", "stream_options")
    return given


def check_model(name: str, writer: Writer) -> None:
    """Raises Refusal for another model than the one served."""
    if name != writer.name:
        raise Refusal(404, f"there is no model `{name[:_SHOWN_CHARS]}`; this server has `{writer.name}`", "model_not_found", "model")


def _completion_prompt(prompt: str | list[int], given: dict, writer: Writer) -> Prompt:
    text, keep = (prompt, given["keep"]) if isinstance(prompt, str) else (None, given["keep"] or 0)
    ids = prompt if text is None else _of_writer(writer.prompt_ids, text, param="prompt")
    if not ids:
        raise bad("the prompt has no tokens", "prompt")
    if max(ids) >= writer.vocab_size:
        raise bad(f"the prompt has ids beyond the vocabulary of {writer.vocab_size}", "prompt")
    if keep is None:  # what texts begin with
        keep = len(_of_writer(writer.prompt_ids, "", param="prompt"))
    ids, cut = _fit(ids, given["max_tokens"], keep, given, writer, "prompt")
    return Prompt(ids, text, cut)


def _system_length(ids: Sequence[int], messages: Sequence[Message], writer: Writer) -> int:
    """How many of a conversation's ids its leading system messages are: those that another conversation with them shares."""
    told = [message for place, message in enumerate(messages) if all(one.role == "system" for one in messages[: place + 1])]
    try:
        other = writer.chat_ids([*told, Message("user", "")]) if told else []
    except MtnlgError:
        return 0
    return next((place for place, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), min(len(ids), len(other)))


def _fit(ids: Sequence[int], max_tokens: int, keep: int | None, given: dict, writer: Writer, param: str):
    """The ids that there is room for, and the Cut. A text that slides needs room for one new token only."""
    room = writer.context - min(max_tokens, 1 if given["slide"] else max_tokens)
    most_tokens = writer.context - (len(ids) if given["truncate"] == "error" and len(ids) < writer.context else 1)
    if room < 1:
        message = f"`max_tokens` can be at most {most_tokens}: the model reads {writer.context} tokens, the prompt's among them"
        raise bad(message, "max_tokens", "context_length_exceeded")
    try:
        return fit(ids, room, given["truncate"], keep or 0)
    except MtnlgError as error:
        message = f"{error.what}: the model reads {writer.context} tokens, the answer's among them"
        if given["truncate"] == "error" and len(ids) < writer.context:
            message += f"; `max_tokens` can be at most {most_tokens}"
        raise bad(message, "keep" if error.where == "keep" else param, "context_length_exceeded") from None


def _asked(given: dict, prompts: tuple[Prompt, ...], max_tokens: int, num_likeliest: int | None, writer: Writer, limits: Limits) -> Asked:
    choices = given["n"]
    if len(prompts) * choices > limits.queue:
        raise bad(f"{len(prompts) * choices} answers in one request are more than {limits.queue}", "n")
    most_tokens = (limits.request_tokens // choices - sum(len(prompt.ids) for prompt in prompts)) // len(prompts)
    if max_tokens > most_tokens:
        message = f"prompts and answers have more than {limits.request_tokens} tokens together"
        raise bad(message + (f"; `max_tokens` can be at most {most_tokens}" if most_tokens > 0 else ""), "max_tokens")
    for name in ("logit_bias", "stop_token_ids"):
        if max(given[name], default=0) >= writer.vocab_size:
            raise bad(f"`{name}` has ids beyond the vocabulary of {writer.vocab_size}", name)
    seed = secrets.randbelow(_SEEDS) if given["seed"] is None else given["seed"] % _SEEDS
    job = None
    if max_tokens:
        requests = (
            _request(prompt, given, max_tokens, (seed + choice) % _SEEDS, num_likeliest) for prompt in prompts for choice in range(choices)
        )
        job = Job(tuple(requests), tuple(given["stop"]))
    tells_usage = bool(given["stream_options"] and given["stream_options"]["include_usage"])
    return Asked(prompts, choices, job, seed, num_likeliest, given["stream"], tells_usage, given.get("echo", False))


_AS_GIVEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "slide")


def _request(prompt: Prompt, given: dict, max_tokens: int, seed: int, num_likeliest: int | None) -> Request:
    return Request(
        prompt.ids,
        max_tokens,
        seed=seed,
        stop_ids=frozenset(given["stop_token_ids"]),
        num_likeliest=num_likeliest,
        **{name: given[name] for name in _AS_GIVEN},
    )


def _of_writer(method, argument, param: str) -> list[int]:
    """Raises Refusal for what the model's tokenizer or template refuses."""
    try:
        return method(argument)
    except MtnlgError as error:
        refused = refusal.of(error)
        refused.param = param
        raise refused from None
