"""Speed of the stages that look at one document at a time, and the memory of a worker: each in a process of its own, on one core.

MB of text per processor second, over the first --megabytes of each file, read before; memory at its peak, above that of the same process
before it made the step, with what the documents themselves take.

COMMAND: python -m benchmarks.clean FILE.jsonl.gz ... [--megabytes=2]
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

SETTINGS = {
    "clean": ("clean", {}),
    "clean, code": ("clean", {"fixes": "all:code"}),
    "clean, four fixes": ("clean", {"fixes": "all:gutenberg,all:paper,all:realnews,all:stories"}),
    "where": ("filter", {"where": "source=x"}),
    "gopher": ("filter", {"rules": "gopher"}),
    "c4": ("filter", {"rules": "c4"}),
    "languages": ("filter", {"languages": "en,zh"}),
    "quality": ("filter", {"quality": "QUALITY"}),
    "words": ("annotate", {"with": "words"}),
    "tags": ("annotate", {"with": "tags"}),
}


def measured(setting: str, path: str, quality: str, megabytes: float) -> tuple[float, float]:
    """(MB/s, MB of memory) in this process."""
    from mtnlg.corpus import sources
    from mtnlg.factory import registry
    from mtnlg.factory.tally import Tally

    documents, size = [], 0
    with sources.opened(pathlib.Path(path)) as file:
        for line in sources.lines(file, 10_000_000):
            documents.append({"source": "s"} | json.loads(line))
            size += len(documents[-1]["text"].encode())
            if size >= megabytes * 1e6:
                break
    name, options = SETTINGS[setting]
    before = _peak_megabytes()
    step = registry.make(name, {key: quality if value == "QUALITY" else value for key, value in options.items()}).step()
    step(documents[0], Tally())  # loads what it needs
    tally, start = Tally(), time.process_time()
    for document in documents:
        step(document, tally)
    return size / 1e6 / (time.process_time() - start), _peak_megabytes() - before


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--megabytes", type=float, default=2)
    parser.add_argument("--sample", nargs=2, metavar=("SETTING", "QUALITY"), help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.sample:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        print(json.dumps(measured(found.sample[0], found.files[0], found.sample[1], found.megabytes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        from mtnlg.factory.text.quality import Classifier

        quality = f"{folder}/quality.npz"
        Classifier(np.random.default_rng(0).normal(size=1 << 20).astype(np.float32), 0.0).save(quality)
        print(f"{'MB/s, MB':20}" + "".join(f"{pathlib.Path(path).name.partition('.')[0][:20]:>22}" for path in found.files))
        for setting in SETTINGS:
            row = f"{setting:20}"
            for path in found.files:
                command = [sys.executable, "-m", "benchmarks.clean", path, f"--megabytes={found.megabytes}", "--sample", setting, quality]
                speed, memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                row += f"{speed:12.2f}{memory:10.0f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
