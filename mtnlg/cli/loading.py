"""How a model is read to write with it: the options that `generate`, `chat` and `serve` have alike."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from mtnlg.cli import terminal
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, MissingInput
from mtnlg.infer import int8_parts
from mtnlg.infer.stretch import SCALINGS

MODEL = "a run, one of its checkpoints/STEP, or a model of another project: Hugging Face's, .gguf, Megatron-LM's"
FETCHED = "runs/chat/smollm2"  # by `make chat`
_OPTIONS = ("context", "rope_scaling", "int8", "int8_text", "num_drafted", "prompt", "truncate", "keep", "max_new_tokens", "logit_bias")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model is read")
    group.add_argument("--context", type=int, metavar="N", help="tokens of a prompt and its text together (default: the model's seq_len)")
    group.add_argument(
        "--rope_scaling", choices=SCALINGS, default="none", help="linear: --context=N lies where seq_len did (default: none)"
    )
    group.add_argument("--int8", default="", metavar="WHAT", help="weights, cache or weights,cache: kept in eight bits; says what it costs")
    group.add_argument(
        "--draft", metavar="PATH", help="a smaller model with the same tokenizer that drafts: texts of the same kind, sooner"
    )
    group.add_argument("--num_drafted", type=int, default=4, metavar="N", help="tokens that it drafts at a time (default: 4)")
    group.add_argument(
        "--unroll_layers",
        choices=("yes", "no"),
        help="compile every layer on its own: faster on a CPU, but minutes until the first text of a deep model (default: no for one text)",
    )
    group.add_argument(
        "--int8_text", metavar="FILE", help="measure what --int8 costs on this text (default: one that the exact model writes)"
    )


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `lm.from_pretrained`. Raises ConfigError."""
    if options.context is not None and options.context < 1:
        raise ConfigError(f"context={options.context} is out of range", "--context", "1 or more")
    if options.int8_text is not None and not options.int8:
        raise ConfigError("there is nothing to measure without --int8", "--int8_text", "--int8=weights")
    if options.num_drafted < 1:
        raise ConfigError(f"num_drafted={options.num_drafted} is out of range", "--num_drafted", "1 or more")
    found = {name: getattr(options, name) for name in ("context", "rope_scaling", "int8_text", "draft", "num_drafted")}
    found["unroll_layers"] = {"yes": True, "no": False, None: None}[options.unroll_layers]
    with as_options():
        return found | {"int8": int8_parts.named(options.int8)}


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """Around what is asked of a model: a ConfigError that names arguments of Python names them as they are typed here, with dashes."""
    try:
        yield
    except ConfigError as error:
        where = f"--{error.where}" if error.where in _OPTIONS else error.where
        cure = re.sub(r"(?<![-.\w])([a-z][a-z0-9_]*)=", r"--\1=", error.cure).replace("--slide=True", "--slide")
        raise ConfigError(error.what, where, cure) from error


def load(path: str, mesh: schema.Mesh, options: argparse.Namespace, num_rows: int = 1):
    """The model, and on stderr what has to be known of it. Raises what `begin` and `lm.from_pretrained` raise."""
    begin(path, options)
    from mtnlg import lm

    with as_options():
        model = lm.from_pretrained(path, mesh, num_rows=num_rows, **settings(options))
    tell(model.notes)
    ask_for_patience("compiling; the text begins after that")
    return model


def begin(path: str, options: argparse.Namespace) -> None:
    """Says what takes long now. Raises MissingInput for the model of the examples, if it is not there."""
    if os.path.normpath(path) == FETCHED and not os.path.exists(path):
        raise MissingInput("it is not fetched yet", path, "make chat")
    measured = ", and measuring what eight bits cost, which takes a while" if options.int8 else ""
    ask_for_patience(f"reading {terminal.shown(path)}{measured}")


def ask_for_patience(what: str) -> None:
    """On a terminal only: elsewhere nobody waits before a screen."""
    if sys.stderr.isatty():
        tell([what])


def tell_drafts(model) -> None:
    """How many of the tokens that were drafted could be taken, on stderr."""
    if model.drafts:
        taken, drafted = model.drafts
        tell([f"{taken} of {drafted} drafted tokens were taken"])


def tell(notes: Iterable[str]) -> None:
    """Lines for a person, on stderr."""
    for note in notes:
        print(f"mtnlg: {note}", file=sys.stderr, flush=True)
