"""Brings weights from one form into another: a run's, Hugging Face's, llama.cpp's, Megatron-LM's.

  run       a run's folder, or one of its checkpoints/STEP: to train, generate and score with
  hf        a folder with config.json and safetensors, for transformers and vLLM: GPT-2, GPT-NeoX, OPT, Llama, Mistral, Qwen2, Qwen3
  gguf      a .gguf file, in only: Llama, Qwen2, Qwen3, quantised or not
  megatron  Megatron-LM's mp_rank_TT[_PPP]/model_optim_rng.pt, with pip install -e '.[megatron]'

Layer by layer, so that no model is too large for the memory. Stopped, the same command goes on where it was. OUT appears when all of
it is there, with a list of its files' hashes.
"""

import argparse
import sys
import time

SOURCES, TARGETS = ("run", "hf", "gguf", "megatron"), ("run", "hf", "megatron")
# The options that only some targets take.
ONLY = {"dtype": ("hf", "megatron"), **dict.fromkeys(("architecture", "max_shard_bytes"), ("hf",))}
ONLY |= dict.fromkeys(("tensor", "pipe", "transformer_impl"), ("megatron",))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--from=KIND] --to=KIND [options] IN OUT"
    parser.add_argument("source", metavar="IN", help="what to convert")
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--from", dest="kind", choices=SOURCES, help="what IN is (default: what lies there says it)")
    parser.add_argument("--to", required=True, choices=TARGETS, help="what OUT shall be")
    parser.add_argument("--tokenizer", help="where the tokenizer lies (default: in IN)")
    parser.add_argument("--vocab_size", type=int, help="from megatron: ids of the tokenizer (default: every row of the padded embedding)")
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="hf, megatron: round numbers to this (default: as they came in)")
    parser.add_argument("--architecture", help="hf: transformers' class (default: the first that can say all of the model)")
    parser.add_argument(
        "--max_shard_bytes", type=int, help="hf: numbers in one file at most, but one tensor at least (default: 5000000000)"
    )
    parser.add_argument("--tensor", type=int, help="megatron: tensor ranks (default: 1)")
    parser.add_argument("--pipe", type=int, help="megatron: pipeline stages (default: 1)")
    impls = ("transformer_engine", "local")
    parser.add_argument("--transformer_impl", choices=impls, help="megatron: as it shall run (default: transformer_engine, as there)")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    from mtnlg.cli import runtime

    _check(options, rest)
    runtime.prepare()
    from mtnlg import convert, weights

    started, opened = time.monotonic(), weights.open_weights(options.source, options.kind, options.vocab_size)
    said = {name: value for name in ONLY if (value := getattr(options, name)) is not None}
    this = convert.identity(opened.where, to=options.to, tokenizer=options.tokenizer, vocab_size=options.vocab_size, **said)
    make = {"run": convert.to_run, "hf": convert.to_hf, "megatron": convert.to_megatron}[options.to]
    names = {"tensor": "num_ranks", "pipe": "num_stages"}
    try:
        make(opened, options.out, this, tokenizer=options.tokenizer, **{names.get(name, name): value for name, value in said.items()})
    except KeyboardInterrupt:
        print(f"mtnlg: what is done lies in {options.out}.tmp; the same command goes on from there", file=sys.stderr)
        raise
    print(f"{options.out}: {weights.num_params(opened.model):,} parameters, {time.monotonic() - started:.1f} s")
    return 0


def _check(options: argparse.Namespace, rest: list[str]) -> None:
    """Raises ConfigError for options that mean nothing here."""
    from mtnlg.core.errors import ConfigError

    if rest:
        raise ConfigError(f"{rest[0]} is no option of convert", "command line", "python -m mtnlg convert --help")
    for name, targets in ONLY.items():
        if getattr(options, name) is not None and options.to not in targets:
            raise ConfigError(f"--{name} is only for --to={' and --to='.join(targets)}", "command line", f"the command without --{name}")
    for name in ("vocab_size", "max_shard_bytes", "tensor", "pipe"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name}={getattr(options, name)} is out of range", "command line", "1 or more")
