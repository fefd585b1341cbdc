"""How much the server takes on: every limit with its default, each an option of `mtnlg serve`."""

import dataclasses
from dataclasses import dataclass, field


def _limit(default: int, meaning: str) -> int:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Limits:
    """What one request, one client and the whole server may use. OWASP API Security 2023, API4."""

    body_bytes: int = _limit(1_000_000, "bytes of a request's body; more: 413")
    header_bytes: int = _limit(16_384, "bytes of a request's header; more: 431")
    read_secs: int = _limit(10, "seconds in which a header, and then a body, has to arrive; more: 408")
    idle_secs: int = _limit(5, "seconds that a connection stays open between requests")
    write_secs: int = _limit(30, "seconds that a client may leave what was sent to it unread; more: its connection is closed")
    deadline_secs: int = _limit(120, "seconds for a request from its body to its answer's end; more: 504")
    grace_secs: int = _limit(30, "seconds that requests have to end after SIGTERM")
    connections: int = _limit(1024, "connections at once; more: 503")
    per_key: int = _limit(256, "requests at once with one key, or without keys from one address; more: 429")
    queue: int = _limit(64, "texts that wait for a row, or for a score; more: 429")
    request_tokens: int = _limit(65_536, "tokens of a request, all its prompts and answers together")
    answer_tokens: int = _limit(512, "tokens of a chat answer where the request does not say")
    choices: int = _limit(8, "answers to one prompt")
    inputs: int = _limit(64, "prompts, or texts to embed, in one request")
    messages: int = _limit(1024, "messages of a conversation")
    stops: int = _limit(4, "stop strings of a request")
    stop_chars: int = _limit(64, "characters of a stop string")
    likeliest: int = _limit(5, "likeliest tokens told of each place")
    biases: int = _limit(1024, "ids in logit_bias")


def meanings() -> list[tuple[str, int, str]]:
    """(name, default, meaning) of each limit."""
    return [(one.name, one.default, one.metadata["meaning"]) for one in dataclasses.fields(Limits)]
