"""Times the first token, and all of them, when many clients ask a server at once.

M is GPT-2 124M with random weights; --model=PATH is any that `mtnlg serve` takes. The server is a process, the clients are threads of this
one. Each client streams one text after a prompt of its own, all begin together, and the first token's time counts from the request.

COMMAND: python -m benchmarks.first_token --clients=64 --rows=8,64   (M needs torch and transformers: make .venv/.torch)
"""

import argparse
import concurrent.futures
import contextlib
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np

from benchmarks.generate import make_gpt2


def make_tokenizer(folder: pathlib.Path) -> None:
    """Beside M's weights: bytes, and the end of a document."""
    import tokenizers

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["a"], vocab_size=257, special_tokens=["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))


@contextlib.contextmanager
def served(model: str, rows: int) -> Iterator[str]:
    """The server's address."""
    command = [
        sys.executable,
        "-m",
        "mtnlg",
        "serve",
        f"--model={model}",
        f"--rows={rows}",
        "--port=0",
        "--queue=1024",
        "--deadline_secs=600",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split("page is ")[1].split("/ and")[0]
        finally:
            process.terminate()


def ask(url: str, model: str, prompt: str, num_tokens: int, together: threading.Barrier) -> list[float]:
    """Seconds from the request to each of its events with text."""
    body = {"model": model, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0, "stream": True, "logprobs": 0}
    with httpx.Client(timeout=600) as client:
        client.get(f"{url}/health")  # connected
        together.wait()
        start, seconds = time.monotonic(), []
        with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            response.raise_for_status()
            seconds = [time.monotonic() - start for line in response.iter_lines() if line.startswith("data: {") and '"tokens"' in line]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="what `mtnlg serve` takes; none: M")
    parser.add_argument("--clients", type=int, default=64, help="that ask at once (default: 64)")
    parser.add_argument("--rows", default="8,64", help="of the server (default: 8,64)")
    parser.add_argument("--characters", type=int, default=128, help="of a prompt: as many tokens for M (default: 128)")
    parser.add_argument("--tokens", type=int, default=32, help="new ones (default: 32)")
    options = parser.parse_args()
    print("| rows | clients | first token, s: median | 99th of 100 | slowest | alone | new tokens/s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            make_gpt2(pathlib.Path(folder))
            make_tokenizer(pathlib.Path(folder))
        for rows in map(int, options.rows.split(",")):
            with served(options.model or folder, rows) as url:
                model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
                chance = random.Random(0)
                prompts = ["".join(chance.choices("abcdefgh ", k=options.characters)) for _ in range(options.clients + 1)]
                alone = ask(url, model, prompts.pop(), options.tokens, threading.Barrier(1))
                together = threading.Barrier(options.clients)
                with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
                    asked = [pool.submit(ask, url, model, prompt, options.tokens, together) for prompt in prompts]
                    seconds = [one.result() for one in asked]
            firsts = np.array([one[0] for one in seconds])
            rate = sum(map(len, seconds)) / max(one[-1] for one in seconds)
            told = (np.median(firsts), np.quantile(firsts, 0.99), firsts.max(), alone[0])
            print(f"| {rows} | {options.clients} | {' | '.join(f'{secs:.2f}' for secs in told)} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main()
