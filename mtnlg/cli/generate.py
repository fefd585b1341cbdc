"""Continues a prompt with a trained model, streaming to the terminal; or many prompts of a file."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable

from mtnlg.cli import loading, runtime, sampling, terminal
from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.infer.request import Request
from mtnlg.infer.room import check_room
from mtnlg.infer.truncate import POLICIES, check_policy

_SEEDS = 2**32
_MOST_ROWS = 8  # of --n texts, written at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s (--workdir=RUN | --model=PATH) --prompt=TEXT [options] [--config.mesh.key=value ...]\n"
        "       %(prog)s (--workdir=RUN | --model=PATH) --in=FILE.jsonl --out=FILE.jsonl [options]"
    )
    parser.epilog = (
        "A line of --in is a JSON object: prompt or messages (role, content), and what may stand beside it: id, stop, truncate, keep,\n"
        "slide, and how it writes, by the names of the options (but stop_ids, num_likeliest). A line's seed is --seed plus its number,\n"
        "from 0. Lines of --out come as texts end, with the number of their line; started again, the command writes what is missing.\n\n"
        "The model lies on one device, however it was trained; --config.mesh.tensor=4, say, spreads it over four."
    )
    parser.add_argument("--workdir", help="a run's folder; its newest checkpoint is taken")
    parser.add_argument("--model", help=loading.MODEL)
    parser.add_argument("--prompt", help="the text to continue; -, or none, reads standard input")
    parser.add_argument("--echo", choices=("yes", "no"), help="of --prompt: write it before the text (default: yes)")
    parser.add_argument("--n", type=int, default=1, help="texts for every prompt, with seeds that follow each other (default: 1)")
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="after the text, its tokens with their log-probabilities, and the K likeliest of each place",
    )
    parser.add_argument("--beams", type=int, metavar="W", help="search for the W likeliest texts, W at a time, instead of drawing one")
    parser.add_argument("--length_penalty", type=float, default=1.0, help="of --beams: the larger, the longer they are (default: 1.0)")
    parser.add_argument("--in", dest="input", metavar="FILE", help="prompts, a JSON object a line")
    parser.add_argument("--out", dest="output", metavar="FILE", help="where the texts of --in go, a JSON object a line")
    parser.add_argument("--rows", type=int, default=8, help="texts of --in written at once (default: 8)")
    group = parser.add_argument_group("more than the context holds")
    meaning = "cut a prompt that is too long: left behind --keep, middle behind the first half of the room, or --keep if that is more"
    group.add_argument("--truncate", choices=POLICIES, default="error", help=f"{meaning} (default: error)")
    meaning = "of --truncate: tokens of its beginning that stay (default: what texts begin with)"
    group.add_argument("--keep", type=int, metavar="N", help=meaning)
    group.add_argument("--slide", action="store_true", help="write on where the context ends, with the last half of the text in sight")
    loading.add_arguments(parser)
    sampling.add_arguments(parser)


def run(options: argparse.Namespace, rest: list[str]) -> int:
    mesh = configs.mesh_of(rest)
    if bool(options.workdir) == bool(options.model):
        raise ConfigError("name one model", "command line", "--workdir=RUN or --model=PATH")
    if bool(options.input) != bool(options.output) or (options.input and options.prompt is not None):
        raise ConfigError("--in and --out belong together, without --prompt", "command line", "--in=FILE.jsonl --out=FILE.jsonl")
    if options.input and options.echo == "yes":
        raise ConfigError("the texts of --in stand without their prompts", "--echo", "--echo=no, or none")
    for name in ("n", "rows", "beams"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"{name}={getattr(options, name)} is out of range", f"--{name}", "1 or more")
    if not options.input:  # whose lines say it themselves
        with loading.as_options():
            check_policy(options.truncate, options.keep)
    settings = sampling.settings(options, num_likeliest=options.logprobs, slide=options.slide)
    loading.settings(options)
    if options.beams is not None:
        _require_no_sampling(options, settings)
    place = options.workdir or options.model
    runtime.prepare()
    if options.input:
        from mtnlg import batches

        lines = batches.read(options.input, {"truncate": options.truncate, "keep": options.keep, "stop": options.stop, **settings})
        model = loading.load(place, mesh, options, options.rows)
        batches.write(model, lines, options.output, options.n, sys.stderr)
        loading.tell([f"{len(lines.lines) * options.n} texts are in {options.output}"])
    else:
        prompt = _text(_prompt(options.prompt))
        model = loading.load(place, mesh, options, min(options.n, _MOST_ROWS))
        with loading.as_options():
            _write(model, prompt, options, settings)
    loading.tell_drafts(model)
    return 0


def _require_no_sampling(options: argparse.Namespace, settings: dict) -> None:
    """Raises ConfigError for an option that has no say in a beam search."""
    given = [name for name, value in settings.items() if name != "max_new_tokens" and value != Request._field_defaults[name]]
    given += [name for name, is_given in (("n", options.n > 1), ("stop", options.stop), ("in", options.input)) if is_given]
    if given:
        option = {"num_likeliest": "logprobs", "stop_ids": "stop_id"}.get(given[0], given[0])
        raise ConfigError(f"a beam search finds the likeliest texts: --{option} has no say in it", "--beams", "one of the two")


def _prompt(given: str | None) -> bytes:
    """Raises ConfigError when there is none."""
    if given not in (None, "-"):
        return os.fsencode(given)
    if given is None and sys.stdin.isatty():
        raise ConfigError("there is no prompt", "command line", "--prompt=TEXT, or a text on standard input")
    return sys.stdin.buffer.read()


def _text(prompt: bytes) -> str:
    try:
        return prompt.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt is not UTF-8: {error.reason} at byte {error.start}", "--prompt", "iconv -t UTF-8") from None


def _write(model, prompt: str, options: argparse.Namespace, settings: dict) -> None:
    """The texts of one prompt: one as it comes, several in the order of their seeds."""
    from mtnlg.lm import Ask

    ask = Ask(prompt, options.stop, options.truncate, options.keep, settings)
    request, cut = model.request_of(ask)
    check_room(request, model.engine.context, model.engine.config.model)
    safe, echo = (terminal.shown if sys.stdout.isatty() else str), ("" if options.echo == "no" else prompt)
    if cut is not None:
        loading.tell([f"tokens {cut.begin} to {cut.end - 1} of the prompt are cut out: there is no room for them"])
    if options.beams is not None:
        for text, logprob in model.beam_search(request.prompt, options.beams, options.max_new_tokens, options.length_penalty):
            sys.stdout.write(f"--- log-probability {logprob:.3f}\n{echo}{safe(text)}\n")
        return
    if options.n == 1:
        written = model.write(request, options.stop)
        first = next(written)  # a request that cannot be honoured is refused before anything is written
        sys.stdout.write(echo)
        tokens, slides = [], 0
        for one in itertools.chain([first], written):
            tokens, slides = [*tokens, one.token], one.slides
            sys.stdout.write(safe(one.text))
            sys.stdout.flush()
        _end(model, tokens, slides, options)
        return
    seeds = [(options.seed + number) % _SEEDS for number in range(options.n)]
    asks = (ask._replace(sampling=settings | {"seed": seed}) for seed in seeds)
    for number, answer in in_order(model.answer_many(asks)):
        sys.stdout.write(f"--- seed {seeds[number]}\n{echo}{safe(answer.text)}")
        _end(model, answer.tokens, answer.slides, options)


def in_order(numbered: Iterable[tuple[int, object]]) -> Iterable[tuple[int, object]]:
    """Pairs by their numbers from 0, each as soon as those before it have come."""
    waiting, due = {}, 0
    for number, item in numbered:
        waiting[number] = item
        while due in waiting:
            yield due, waiting.pop(due)
            due += 1


def _end(model, tokens: list, slides: int, options: argparse.Namespace) -> None:
    """The end of a text, and what is to be told of it."""
    sys.stdout.write("\n")
    if options.logprobs is not None:
        sys.stdout.write(table(tokens, model.tokenizer.decode_bytes))
    sys.stdout.flush()
    if slides:
        times = {1: "once", 2: "twice"}.get(slides, f"{slides} times")
        loading.tell([f"the text came to the end of the context of {model.engine.context} tokens, and went on with its last half {times}"])


def table(tokens: list, bytes_of: Callable) -> str:
    """A line a token: its log-probability in nats, itself, and the likeliest of its place."""

    def shown(id: int) -> str:
        return json.dumps(bytes_of([id]).decode(errors="replace"), ensure_ascii=False)

    lines = ["\n  logprob  token"]
    for token in tokens:
        others = ", ".join(f"{shown(id)} {logprob:.3f}" for id, logprob in token.likeliest)
        lines.append(f"{token.logprob:9.3f}  {shown(token.id):16} {others}".rstrip())
    return "\n".join(lines) + "\n"
