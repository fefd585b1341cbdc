"""Talks with a trained model that has a chat template: an answer to every line. /reset starts afresh; Ctrl-C or Ctrl-D leaves."""

import argparse
import contextlib
import sys
from collections.abc import Iterator

from mtnlg.cli import runtime
from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError, DataError, MtnlgError

RESET = "/reset"

# Weights may come from a stranger: what would steer a terminal is shown as unknown characters.
_SHOWN = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --model=PATH [options] [--config.mesh.key=value ...]"
    parser.epilog = "What comes through a pipe is read line by line too, without prompts. The model lies on one device, as with generate."
    parser.add_argument(
        "--model",
        required=True,
        help="a run, one of its checkpoints/STEP, or a model of another project: Hugging Face's, .gguf, Megatron-LM's",
    )
    parser.add_argument("--system", help="what the model is told before the conversation (default: what its template says)")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="tokens of an answer at most (default: 512)")
    parser.add_argument("--temperature", type=float, default=0.2, help="0: always the likeliest token (default: 0.2)")
    parser.add_argument("--top_k", type=int, default=0, help="only the k likeliest tokens; 0: all (default: 0)")
    parser.add_argument("--top_p", type=float, default=0.95, help="only the likeliest tokens that reach this probability (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same answers (default: 0)")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    mesh = configs.mesh_of(rest)
    runtime.prepare()
    from mtnlg import lm
    from mtnlg.data.chat import Chat, Message

    model = lm.from_pretrained(options.model, mesh)
    chat = Chat(model.tokenizer, options.model)
    settings = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    beginning = [Message("system", options.system)] if options.system is not None else []
    messages = beginning
    with contextlib.suppress(KeyboardInterrupt):
        for line in _lines():
            if line == RESET:
                messages = beginning
                continue
            asked = [*messages, Message("user", line)]
            try:
                answer = _answer(model, chat.encode(asked), settings)
            except MtnlgError as error:
                if not sys.stdin.isatty():
                    raise
                print(f"mtnlg: error: {error}", file=sys.stderr)
            else:
                messages = [*asked, Message("assistant", answer)]
    if sys.stdin.isatty():
        print()
    return 0


def _answer(model, ids: list[int], settings: dict) -> str:
    """Writes the answer piece by piece and returns it whole. Raises ConfigError."""
    seq_len = model.seq_len
    room = seq_len - len(ids)
    if room < 1:
        raise ConfigError(f"the conversation has {len(ids)} tokens, and the model reads {seq_len}", "chat", RESET)
    pieces = []
    for piece in model.stream(ids, **settings | {"max_new_tokens": min(settings["max_new_tokens"], room)}):
        pieces.append(piece)
        print(piece.translate(_SHOWN), end="", flush=True)
    print(flush=True)
    return "".join(pieces)


def _lines() -> Iterator[str]:
    """What is typed, or what a pipe brings, line by line; empty lines are nothing. Raises DataError."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, which gives `input` its history
        with contextlib.suppress(EOFError):
            while True:
                if line := input("> ").strip():
                    yield line
        return
    for content in sys.stdin.buffer:
        try:
            line = content.decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"a line is not UTF-8: {error.reason}", "standard input", "iconv -t UTF-8") from None
        if line:
            yield line
