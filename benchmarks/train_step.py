"""Times one training step against the fastest matrix product of the same process.

S is 4 layers of width 256 over 16 x 256 tokens with a vocabulary of 8192; M is GPT-2 124M over 2 x 512 tokens. Each in float32 and
bfloat16, with freed pages kept (as every `mtnlg` command does) and not. A sample is a fresh process, and the samples of all settings
take turns, because two starts of the same program can differ by more than a setting is worth. In a sample a step and a 2048³ product
take turns too; the share of the peak is step FLOP/s (6N + 12LHQT a token) over the fastest product's.

COMMAND: make bench, or python -m benchmarks.train_step --sizes=S --repeats=5
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time

import numpy as np

from mtnlg.core import schema

SIZES = {
    "S": (schema.Model(num_layers=4, d_model=256, num_heads=4, vocab_size=8192, seq_len=256), 16),
    "M": (schema.Model(num_layers=12, d_model=768, num_heads=12, vocab_size=50257, seq_len=512), 2),
}


def sample(size: str, dtype: str, num_steps: int) -> dict:
    """One process's measurement: seconds of the median step, of compiling, and the FLOP/s of the fastest product."""
    from mtnlg.launch import allocator

    allocator.keep_freed_pages()
    import jax

    from mtnlg.model import count
    from mtnlg.parallel import mesh as meshes
    from mtnlg.train import peak
    from mtnlg.train import state as states
    from mtnlg.train import step as steps

    model, rows = SIZES[size]
    config = schema.Config(model=model, train=schema.Train(batch_size=rows, compute_dtype=dtype, unroll_layers=True))
    mesh = meshes.make(config.mesh)
    state, program = states.make(config, mesh), steps.make(config, mesh)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, rows, model.seq_len + 1), np.int32)
    ones = np.ones_like(tokens[..., 1:])
    batch = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "positions": ones.cumsum(-1, dtype=np.int32) - 1}
    batch |= {"segment_ids": ones, "weights": ones.astype(np.float32)}
    seconds, peaks = [], []
    for number in range(num_steps + 1):
        start = time.perf_counter()
        state, metrics = program(state, batch, 1, number, 1e-4, False)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        peaks.append(peak.best_gemm_flops_per_sec(dtype, repeats=1))
    num_tokens = rows * model.seq_len
    rate = num_tokens / float(np.median(seconds[1:]))
    flops = rate * count.flops_per_token(model)
    return {"tokens_per_sec": rate, "share_of_peak": flops / max(peaks), "peak_flops_per_sec": max(peaks), "first_step_secs": seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="S,M", help="S, M or both (default: S,M)")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="compute dtypes (default: float32,bfloat16)")
    parser.add_argument("--pages", default="kept,stock", help="freed pages kept, or the stock allocator (default: kept,stock)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each setting (default: 3)")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a process (default: 6)")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        size, dtype = options.sample.split(",")
        print(json.dumps(sample(size, dtype, options.steps)))
        return
    settings = list(itertools.product(options.sizes.split(","), options.dtypes.split(","), options.pages.split(",")))
    results: dict[tuple, list[dict]] = {setting: [] for setting in settings}
    for round_number in range(options.repeats):
        for setting in settings:
            size, dtype, pages = setting
            print(f"round {round_number + 1}/{options.repeats}: {size} {dtype}, pages {pages}", file=sys.stderr)
            environment = os.environ | {"MTNLG_KEEP_FREED_PAGES": str(int(pages == "kept")), "JAX_PLATFORMS": "cpu"}
            command = [sys.executable, "-m", "benchmarks.train_step", f"--sample={size},{dtype}", f"--steps={options.steps}"]
            child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            results[setting].append(json.loads(child.stdout.splitlines()[-1]))
    print("| step | pages | tokens/s, median (range) | share of the GEMM peak, median (range) | GEMM peak, GFLOP/s | first step, s |")
    print("|---|---|---|---|---|---|")
    for (size, dtype, pages), samples in results.items():
        rates, shares = ([s[name] for s in samples] for name in ("tokens_per_sec", "share_of_peak"))
        peaks, firsts = ([s[name] for s in samples] for name in ("peak_flops_per_sec", "first_step_secs"))
        print(
            f"| {size} {dtype} | {pages} | {np.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) "
            f"| {np.median(shares):.2f} ({min(shares):.2f}-{max(shares):.2f}) | {np.median(peaks) / 1e9:,.0f} | {np.median(firsts):.0f} |"
        )


if __name__ == "__main__":
    main()
