"""Measures how the memory of the stages of `mtnlg data` grows with their input: the peak of parent and workers together.

Texts of random words, about 2 kB each, no two alike, are written as JSONL into a temporary folder, which is deleted at the end; every
stage reads them. A shared page counts in each process that has it. Linux only.

COMMAND: python -m benchmarks.factory_memory --stages=extract,clean --gigabytes=0.1,1,3
"""

import argparse
import json
import pathlib
import random
import shlex
import subprocess
import sys
import tempfile
import time

_SAMPLED_SECS = 0.05
_PAGE_BYTES = 4096


def write(path: pathlib.Path, num_bytes: int) -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("aeinorstlmdu", k=chance.randrange(2, 10))) for _ in range(50_000)]
    with path.open("w") as file:
        while file.tell() < num_bytes:
            sentences = (" ".join(chance.choices(words, k=15)).capitalize() for _ in range(22))
            file.write(json.dumps({"text": ". ".join(sentences) + "."}) + "\n")


def peak_bytes(command: list[str]) -> tuple[int, float]:
    """(the most that the process and all below it had resident at one time, seconds)."""
    start, most = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, sum(map(_resident, _tree(process.pid))))
            time.sleep(_SAMPLED_SECS)
    if process.returncode:
        sys.exit(f"{shlex.join(command)} ended with {process.returncode}")
    return most, time.monotonic() - start


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for task in pathlib.Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # it has ended
                continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default="extract,clean", help="any, each perhaps with options: 'extract,clean --min_chars=100'")
    parser.add_argument("--gigabytes", default="0.1,1,3", help="of input (default: 0.1,1,3)")
    parser.add_argument("--workers", type=int, default=2, help="of each stage (default: 2)")
    options = parser.parse_args()
    sizes = [float(size) for size in options.gigabytes.split(",")]
    peaks: dict[str, list[int]] = {}
    print("| stage | GB | seconds | peak, MB |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        texts = pathlib.Path(folder, "texts.jsonl")
        for size in sizes:
            write(texts, int(size * 1e9))
            for stage in options.stages.split(","):
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    command = [sys.executable, "-m", "mtnlg", "data", *shlex.split(stage), f"--input={texts}", f"--output={output}/out"]
                    peak, seconds = peak_bytes([*command, f"--workers={options.workers}"])
                peaks.setdefault(stage, []).append(peak)
                print(f"| {stage} | {size:g} | {seconds:.0f} | {peak / 1e6:.0f} |", flush=True)
    for stage, found in peaks.items():
        if len(sizes) > 1:
            print(f"{stage}: {(found[-1] - found[0]) / 1e6 / (sizes[-1] - sizes[0]):+.1f} MB per GB")


if __name__ == "__main__":
    main()
