"""Brings weights from one form into another: a run's, or a folder for Hugging Face's transformers and vLLM.

Layer by layer, so that no model is too large for the memory. Stopped, the same command goes on where it was. OUT appears when all of
it is there, with a list of its files' hashes.
"""

import argparse
import time

SOURCES, TARGETS = ("run", "hf"), ("run", "hf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--from=KIND] --to=KIND [options] IN OUT"
    parser.add_argument(
        "source", metavar="IN", help="a run's folder, one of its checkpoints/STEP, or a folder with config.json and safetensors"
    )
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--from", dest="kind", choices=SOURCES, help="what IN is (default: what lies there says it)")
    parser.add_argument("--to", required=True, choices=TARGETS, help="run: to train and generate with; hf: for transformers and vLLM")
    parser.add_argument("--tokenizer", help="where the tokenizer lies (default: in IN)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="hf: round numbers to this (default: as they came in)")
    parser.add_argument("--architecture", help="hf: transformers' class (default: the first that can say all of the model)")
    parser.add_argument("--max_shard_bytes", type=int, default=5_000_000_000, help="hf: numbers in one file at most (default: 5e9)")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    from mtnlg.cli import runtime
    from mtnlg.core.errors import ConfigError

    if rest:
        raise ConfigError(f"{rest[0]} is no option of convert", "command line", "python -m mtnlg convert --help")
    for name in ("dtype", "architecture"):
        if getattr(options, name) is not None and options.to != "hf":
            raise ConfigError(f"--{name} is only for --to=hf", "command line", f"the command without --{name}")
    if options.max_shard_bytes < 1:
        raise ConfigError(f"--max_shard_bytes={options.max_shard_bytes} is out of range", "command line", "1 or more")
    runtime.prepare()
    from mtnlg import convert, weights

    started, opened = time.monotonic(), weights.open_weights(options.source, options.kind)
    chosen = {name: getattr(options, name) for name in ("to", "tokenizer", "dtype", "architecture", "max_shard_bytes")}
    this = convert.identity(opened.where, **chosen)
    if options.to == "run":
        convert.to_run(opened, options.out, this, options.tokenizer)
    else:
        names = ("dtype", "architecture", "max_shard_bytes", "tokenizer")
        convert.to_hf(opened, options.out, this, **{name: chosen[name] for name in names})
    print(f"{options.out}: {weights.num_params(opened.model):,} parameters, {time.monotonic() - started:.1f} s")
    return 0
