"""What is asked of an engine, and what it answers: token ids, settings, numbers. No jax here."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtnlg.core.errors import ConfigError

MAX_LIKELIEST = 20  # of each place, told with their log-probabilities
_LARGEST = 3e38  # that float32 holds


class Request(NamedTuple):
    """One prompt and how to continue it. The defaults from temperature to frequency_penalty but for the first and third change nothing.

    temperature 0 is greedy, top_k 0 allows everything. repetition_penalty: logits of tokens in the prompt or written since, divided by
    it if positive, else multiplied (Keskar et al. 2019, arXiv 1909.05858, section 4.1). presence_penalty, frequency_penalty: taken from
    the logits of tokens written since, once, and as often as they were. logit_bias: added to the logits of these ids. num_likeliest: how
    many of the likeliest tokens of each place are told, with log-probabilities; None: none, and not the chosen one's either.
    slide: where the context ends, go on from the last half of the text, read anew.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = {}
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    num_likeliest: int | None = None
    slide: bool = False


class Token(NamedTuple):
    """A token written, its log-probability in nats and the likeliest (id, log-probability) of its place, where they were asked for.

    Log-probabilities are the model's own, before temperature, penalties and bias.
    """

    id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


LEGAL = {
    "max_new_tokens": (lambda n: n >= 1, "1 or more"),
    "temperature": (lambda x: 0 <= x <= _LARGEST, "0 (greedy) or more"),
    "top_k": (lambda n: 0 <= n < 2**31, "0 (all) or more"),
    "top_p": (lambda x: 0 < x <= 1, "more than 0, at most 1"),
    "min_p": (lambda x: 0 <= x <= 1, "0 (all) to 1"),
    "repetition_penalty": (lambda x: 1e-3 <= x <= 1e3, "0.001 to 1000; 1 changes nothing"),
    "presence_penalty": (lambda x: abs(x) <= 1e3, "-1000 to 1000"),
    "frequency_penalty": (lambda x: abs(x) <= 1e3, "-1000 to 1000"),
    "logit_bias": (lambda bias: all(abs(x) <= 1e3 for x in bias.values()), "-1000 to 1000 for each id"),
    "seed": (lambda n: 0 <= n < 2**32, f"0 to {2**32 - 1}"),
    "num_likeliest": (lambda n: n is None or 0 <= n <= MAX_LIKELIEST, f"0 to {MAX_LIKELIEST}, or none"),
}


_MEANT = {"logprobs": "num_likeliest", "stop_id": "stop_ids", "max_tokens": "max_new_tokens", "stop_strings": "stop"}  # other names


def request_with(prompt: Sequence[int], settings: Mapping[str, Any], beside: Mapping[str, str] = {}) -> Request:
    """With settings by their names. beside: other names that are right elsewhere, each with the cure where it is not.

    Raises ConfigError for a name that is no setting, with the nearest one.
    """
    known = Request._fields[1:]
    for name in settings:
        if name not in known:
            near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, [*known, *beside], 1, 0.6)
            cure = beside.get(near[0], f"{near[0]}=") if near else f"one of {', '.join(known)}"
            raise ConfigError(f"there is no setting {name!r} here", name, cure)
    return Request(prompt, **settings)


def check_settings(request: Request) -> None:
    """Raises ConfigError for a setting out of its range."""
    for name, (good, cure) in LEGAL.items():
        if not good(getattr(request, name)):
            raise ConfigError(f"{name}={getattr(request, name)} is out of range", name, cure)
