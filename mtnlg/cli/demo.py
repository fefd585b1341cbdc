"""Trains a small GPT on the library of this Python, and shows its curve, its text, and how it compares with a 3-gram model and xz."""

import argparse
import math

from mtnlg.cli import runtime
from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError

CONFIG = "configs/demo.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"%(prog)s [--workdir=DIR] [--config={CONFIG}] [--config.key=value ...]"
    parser.add_argument("--workdir", default="runs/demo", help="the run's folder (default: runs/demo); an unfinished demo goes on there")


def run(options: argparse.Namespace, config_arguments: list[str]) -> int:
    named = any(a == configs.PREFIX or a.startswith(f"{configs.PREFIX}=") for a in config_arguments)
    arguments = config_arguments if named else [f"{configs.PREFIX}={CONFIG}", *config_arguments]
    config = configs.resolve(arguments)
    if not options.workdir:
        raise ConfigError("no folder is named for the run", "command line", "--workdir=runs/NAME")
    if len(config.data.source) != 1:
        raise ConfigError("the demo compares models on one source", "data.source", "python -m mtnlg train for several")
    runtime.prepare(config)

    from mtnlg.corpus import build, reference
    from mtnlg.model import count
    from mtnlg.pretrain.run import pretrain
    from mtnlg.run import curves
    from mtnlg.train import evaluate

    result = pretrain(config, options.workdir, configs.split_arguments(arguments)[1])
    if not result.finished:
        return 0
    (name, heldout), num_bytes = next(iter(result.heldout.items())), result.heldout_bytes
    bits = evaluate.bits_per_byte(heldout, num_bytes, config.model.vocab_size)
    trigram = reference.trigram_bits_per_byte(build.train_text(config, name), build.heldout_text(config, name))
    xz = reference.xz_bits_per_byte(build.heldout_text(config, name))
    nats_per_bit_per_token = math.log(2) * num_bytes / heldout.num_tokens
    picture = curves.draw(f"{options.workdir}/metrics.jsonl", {"byte 3-gram": trigram * nats_per_bit_per_token})

    rate, flops = result.tokens_per_sec, count.flops_per_token(config.model)
    rows = [
        (f"this GPT, {count.num_params(config.model):,} parameters", f"{bits:.3f}", f"{heldout.loss:.3f} nats per token"),
        ("byte 3-gram model of the same text", f"{trigram:.3f}", "interpolated Witten-Bell"),
        ("xz -9 of the held-out files", f"{xz:.3f}", "has not seen the rest"),
    ]
    print("\nsamples")
    for prompt, text in result.samples:
        print("-" * 72 + f"\n\033[1m{prompt}\033[0m{text}" if _color() else "-" * 72 + f"\n{prompt}|{text}")
    print("-" * 72 + f"\n\nheld-out text: {num_bytes:,} bytes of {name}, {heldout.num_tokens:,} tokens\n")
    print(f"  {'':44} bits per byte")
    for what, figure, note in rows:
        print(f"  {what:44} {figure:>13}   {note}")
    if math.isfinite(rate):
        peak = result.peak_flops_per_sec
        print(f"\n  speed    {rate:,.0f} tokens/s, MFU {100 * rate * flops / peak:.1f} % of {peak / 1e9:,.0f} GFLOP/s")
    print(f"  curve    {picture}\n  the run  {options.workdir}")
    print(f"\n  python -m mtnlg generate --workdir={options.workdir} --prompt='def '")
    return 0


def _color() -> bool:
    import sys

    return sys.stdout.isatty()
