"""Times greedy generation against Hugging Face's `generate` with the same weights, and against reading as many bytes.

M is GPT-2 124M with random weights, made here; --model=FOLDER is a trained model as transformers saves it. float32, a prompt of 128 tokens
and 128 new ones, prompt and all. A sample is a fresh process, and the samples of all settings
take turns, because two starts of the same program can differ by more than a setting is worth. The first text is compared: both must
write the same tokens. "of a read": the bytes of the weights times the steps a second, over what one sum reads in the same process.

COMMAND: python -m benchmarks.generate --repeats=5 [--model=FOLDER]   (needs torch and transformers: make .venv/.torch)
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

PROGRAMS = ("mtnlg", "transformers")


def make_gpt2(folder: pathlib.Path) -> None:
    """GPT-2 124M as transformers initialises it. Id 0 ends a document, which a small tokenizer has too."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0)).save_pretrained(folder)


def prompts_of(vocab_size: int, rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocab_size, (rows, length))


def timed(generate, num_texts: int) -> tuple[list, list[float]]:
    """(what the first call wrote, seconds of each later one)."""
    written, seconds = generate(), []
    for _ in range(num_texts):
        start = time.perf_counter()
        generate()
        seconds.append(time.perf_counter() - start)
    return written, seconds


def ours(folder: str, rows: int, length: int, num_texts: int) -> dict:
    """tokens, the first text's; secs of the median call; share: of a sum's speed."""
    from mtnlg.launch import allocator

    allocator.keep_freed_pages()
    import jax

    from mtnlg import pretrained, weights
    from mtnlg.core import schema
    from mtnlg.infer.engine import Engine
    from mtnlg.infer.request import Request
    from mtnlg.parallel import mesh as meshes
    from mtnlg.spmd import Laid

    foreign = weights.open_weights(folder)
    config = schema.Config(model=foreign.model, mesh=schema.Mesh(zero=0))
    mesh = meshes.make(config.mesh)
    engine = Engine(config, mesh, pretrained.load_foreign(foreign, config, mesh), num_rows=rows, laid=Laid(apart=True), consume=True)
    requests = [Request(ids.tolist(), length, temperature=0.0) for ids in prompts_of(foreign.model.vocab_size, rows, length)]
    written, seconds = timed(lambda: engine.generate(requests), num_texts)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(engine.params))
    much, total = jax.numpy.ones(num_bytes // 4), jax.jit(jax.numpy.sum)
    _, reads = timed(lambda: total(much).block_until_ready(), 10)
    return {"tokens": written[0], "secs": float(np.median(seconds)), "share": length * min(reads) / float(np.median(seconds))}


def theirs(folder: str, rows: int, length: int, num_texts: int) -> dict:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = torch.from_numpy(prompts_of(model.config.vocab_size, rows, length))
    settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompts)
    with torch.no_grad():
        generate = lambda: model.generate(prompts, attention_mask=mask, **settings)[:, length:].tolist()  # noqa: E731
        written, seconds = timed(generate, num_texts)
    return {"tokens": written[0], "secs": float(np.median(seconds))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder as transformers saves it; none: M")
    parser.add_argument("--rows", default="1,8", help="texts at once (default: 1,8)")
    parser.add_argument("--length", type=int, default=128, help="tokens of the prompt, and new ones (default: 128)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each setting (default: 3)")
    parser.add_argument("--texts", type=int, default=3, help="timed calls of a process (default: 3)")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        program, folder, rows = options.sample.split(",")
        print(json.dumps({"mtnlg": ours, "transformers": theirs}[program](folder, int(rows), options.length, options.texts)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            make_gpt2(pathlib.Path(folder))
        settings = list(itertools.product(map(int, options.rows.split(",")), PROGRAMS))
        results: dict[tuple, list[dict]] = {setting: [] for setting in settings}
        for number, (rows, program) in itertools.product(range(options.repeats), settings):
            print(f"round {number + 1}/{options.repeats}: {program}, {rows} texts at once", file=sys.stderr)
            sample = f"--sample={program},{options.model or folder},{rows}"
            command = [sys.executable, "-m", "benchmarks.generate", sample, f"--length={options.length}", f"--texts={options.texts}"]
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
            child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            results[rows, program].append(json.loads(child.stdout.splitlines()[-1]))
    print("| texts at once | mtnlg, tokens/s, median (range) | transformers | ratio | of a read | same tokens |")
    print("|---|---|---|---|---|---|")
    for rows in dict.fromkeys(rows for rows, _ in settings):
        rates = [[rows * options.length / s["secs"] for s in results[rows, program]] for program in PROGRAMS]
        told = [f"{np.median(rate):,.1f} ({min(rate):,.1f}-{max(rate):,.1f})" for rate in rates]
        share = np.median([s["share"] for s in results[rows, "mtnlg"]])
        first, second = (results[rows, program][0]["tokens"] for program in PROGRAMS)
        same = sum(a == b for a, b in zip(first, second, strict=True))
        ratio = np.median(rates[0]) / np.median(rates[1])
        print(f"| {rows} | {' | '.join(told)} | {ratio:.2f} | {share:.2f} | {same}/{options.length} |")


if __name__ == "__main__":
    main()
