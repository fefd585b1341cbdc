"""Talks with a trained model that has a chat template: an answer to every line. /help tells more; Ctrl-C or Ctrl-D leaves."""

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from mtnlg.cli import loading, runtime, sampling, terminal
from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError, DataError, MtnlgError

RESET = "/reset"
HELP = "/help"
_BETWEEN = "---"  # answers, where questions come through a pipe
_HELP = """/reset  starts afresh
/help   says this
//text  says /text to the model
Ctrl-C  ends an answer; where a line is awaited it leaves, as Ctrl-D does
A conversation that is longer than the context loses its oldest exchanges, which is said; what --system tells stays."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --model=PATH [options] [--config.mesh.key=value ...]"
    parser.epilog = (
        f"What comes through a pipe is read line by line too, without prompts, and a line {_BETWEEN} parts the answers.\n"
        "The model lies on one device, as with generate."
    )
    parser.add_argument("--model", required=True, help=loading.MODEL)
    parser.add_argument("--system", help="what the model is told before the conversation (default: what its template says)")
    loading.add_arguments(parser)
    sampling.add_arguments(parser, max_new_tokens=512, temperature=0.2)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    mesh = configs.mesh_of(rest)
    settings = sampling.settings(options)
    loading.settings(options)
    runtime.prepare()
    from mtnlg.data.chat import Chat, Message

    model = loading.load(options.model, mesh, options)
    chat = Chat(model.tokenizer, options.model)
    beginning = [Message("system", options.system)] if options.system is not None else []
    messages, between = beginning, ""
    with contextlib.suppress(KeyboardInterrupt):
        for line in _lines():
            if line == HELP:
                print(_HELP, flush=True)
                continue
            if line == RESET:
                messages = beginning
                loading.tell(["the conversation starts afresh"])
                continue
            try:
                asked, ids = _fit(model, chat, [*messages, Message("user", _said(line))], settings["max_new_tokens"])
                print(between, end="")
                with loading.as_options():
                    answer = _answer(model, ids, options.stop, settings)
            except MtnlgError as error:
                if not sys.stdin.isatty():
                    raise
                print(f"mtnlg: error: {error}", file=sys.stderr)
            else:
                messages, between = [*asked, Message("assistant", answer)], "" if sys.stdin.isatty() else f"{_BETWEEN}\n"
    if sys.stdin.isatty():
        print()
    return 0


def _said(line: str) -> str:
    """What a line says to the model. Raises ConfigError for a command that there is not."""
    if line.startswith("/") and not line.startswith("//"):
        raise ConfigError(f"there is no command {line.split()[0][:40]}", "chat", f"{HELP}, which lists them, or /{line[:40]} to say it")
    return line.removeprefix("/")


def _fit(model, chat, messages: list, max_new_tokens: int) -> tuple[list, list[int]]:
    """What is kept of a conversation, and its ids; an answer has what it may have, or a quarter of the context. Raises ConfigError."""
    context = model.engine.context
    for room in (context - min(max_new_tokens, context // 4), context - 1):
        try:
            ids, kept = chat.encode_latest(messages, room)
        except ConfigError:
            continue  # one message alone may have more of it
        if len(kept) < len(messages):
            dropped = len(messages) - len(kept)
            loading.tell([f"the conversation is longer than the context of {context} tokens: its {dropped} oldest messages are gone"])
        return kept, ids
    raise ConfigError(f"the message is longer than the context of {context} tokens", "chat", "a shorter one, or a larger --context")


def _answer(model, ids: list[int], stop: list[str], settings: dict) -> str:
    """Writes the answer piece by piece and returns it whole, or as far as it was when somebody had read enough. Raises ConfigError."""
    from mtnlg.lm import Ask

    most, context = settings["max_new_tokens"], model.engine.context
    request, _ = model.request_of(Ask(ids, sampling=settings | {"max_new_tokens": min(most, context - len(ids))}))
    pieces, finish = [], None
    with _ears() as enough, contextlib.closing(model.write(request, stop)) as answer:
        for written in answer:
            pieces.append(written.text)
            finish = written.finish
            print(terminal.shown(written.text), end="", flush=True)
            if enough.is_set():
                break
    print(flush=True)
    if finish == "length":
        by = f"--max_new_tokens={most}" if request.max_new_tokens == most else f"the context of {context} tokens"
        loading.tell([f"the answer is cut off by {by}"])
    return "".join(pieces)


@contextlib.contextmanager
def _ears() -> Iterator[threading.Event]:
    """On a terminal, an event that Ctrl-C sets; a second one, or one elsewhere, is a KeyboardInterrupt."""
    enough = threading.Event()

    def hear(number, frame):
        if enough.is_set():
            raise KeyboardInterrupt
        enough.set()

    before = signal.signal(signal.SIGINT, hear) if sys.stdin.isatty() else None
    try:
        yield enough
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


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
