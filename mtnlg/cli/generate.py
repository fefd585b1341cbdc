"""Continues a prompt with a trained model, streaming to the terminal."""

import argparse
import itertools
import os
import sys

from mtnlg.cli import runtime
from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError, DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s (--workdir=RUN | --model=PATH) --prompt=TEXT [options] [--config.mesh.key=value ...]"
    parser.epilog = "The model lies on one device, however it was trained; --config.mesh.tensor=4, say, spreads it over four."
    parser.add_argument("--workdir", help="a run's folder; its newest checkpoint is taken")
    parser.add_argument(
        "--model", help="a run, one of its checkpoints/STEP, or a model of another project: Hugging Face's, .gguf, Megatron-LM's"
    )
    parser.add_argument("--prompt", required=True, help="the text to continue; - reads standard input")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="tokens to write at most (default: 64)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default: 0.8)")
    parser.add_argument("--top_k", type=int, default=0, help="only the k likeliest tokens; 0: all (default: 0)")
    parser.add_argument("--top_p", type=float, default=0.95, help="only the likeliest tokens that reach this probability (default: 0.95)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument("--stop", action="append", default=[], help="end before this text; may be given several times")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    mesh = configs.mesh_of(rest)
    if bool(options.workdir) == bool(options.model):
        raise ConfigError("name one model", "command line", "--workdir=RUN or --model=PATH")
    runtime.prepare()
    from mtnlg import lm

    prompt = _text(sys.stdin.buffer.read() if options.prompt == "-" else os.fsencode(options.prompt))
    model = lm.from_pretrained(options.workdir or options.model, mesh)
    settings = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    pieces = model.stream(prompt, options.stop, **settings)
    first = next(pieces, "")  # a request that cannot be honoured is refused before anything is written
    known, wanted = model.seq_len, len(model.prompt_ids(prompt)) + options.max_new_tokens
    if wanted > known:
        said = f"{wanted} tokens are asked for, and the model has learnt from {known} at a time: what comes after them may be nonsense"
        print(f"mtnlg: {said}", file=sys.stderr)
    sys.stdout.write(prompt)
    for piece in itertools.chain([first], pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


def _text(prompt: bytes) -> str:
    try:
        return prompt.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt is not UTF-8: {error.reason} at byte {error.start}", "--prompt", "iconv -t UTF-8") from None
