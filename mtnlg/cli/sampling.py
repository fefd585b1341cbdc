"""How a model writes: the options that `generate` and `chat` have alike."""

import argparse
from typing import Any

from mtnlg.core.errors import ConfigError
from mtnlg.infer.request import Request, check_settings

_NUMBERS = {
    "max_new_tokens": (int, "tokens to write at most"),
    "temperature": (float, "0: always the likeliest token"),
    "top_k": (int, "only the k likeliest tokens; 0: all"),
    "top_p": (float, "only the likeliest tokens that reach this probability"),
    "min_p": (float, "only tokens that have at least this part of the likeliest one's probability; 0: all"),
    "repetition_penalty": (float, "makes tokens of the prompt and of the text less likely again; 1: does not"),
    "presence_penalty": (float, "taken from the logits of tokens already written"),
    "frequency_penalty": (float, "taken from the logits of tokens already written, as often as they were"),
    "seed": (int, "same seed, same text"),
}
_OPTIONS = {"num_likeliest": "logprobs"}  # named otherwise than the field


def add_arguments(parser: argparse.ArgumentParser, **defaults) -> None:
    """defaults: other ones than a `Request` has."""
    group = parser.add_argument_group("how it writes")
    for name, (kind, meaning) in _NUMBERS.items():
        default = defaults.get(name, Request._field_defaults[name])
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{meaning} (default: {default})")
    group.add_argument(
        "--logit_bias", action="append", default=[], metavar="ID=N", help="added to the logits of a token; may be given several times"
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    group.add_argument("--stop_id", action="append", type=int, default=[], metavar="ID", help="end with this token; as --stop")


def settings(options: argparse.Namespace, **others) -> dict[str, Any]:
    """Fields of a `Request`, `others` too. Raises ConfigError for a value out of its range."""
    if "" in options.stop:
        raise ConfigError("an empty stop text ends nothing", "--stop", "--stop=TEXT")
    found = {name: getattr(options, name) for name in _NUMBERS} | others
    found |= {"logit_bias": dict(map(_bias, options.logit_bias)), "stop_ids": frozenset(options.stop_id)}
    try:
        check_settings(Request((), **found))
    except ConfigError as error:
        raise ConfigError(error.what, f"--{_OPTIONS.get(error.where, error.where)}", error.cure) from None
    return found


def _bias(text: str) -> tuple[int, float]:
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise ConfigError(f"{text[:40]!r} is no bias", "--logit_bias", "--logit_bias=ID=NUMBER, as 42=-5") from None
