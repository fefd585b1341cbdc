"""Times `mtnlg data dedup` next to datasketch (and datatrove, where it is installed), and its search for candidates alone.

With --pages, how many copies it finds among so many pages of one template, and how many pairs it compares.

All with 20 bands of 13 hashes over shingles of 5 lower-case words, one process each, reading the same JSONL; samples are fresh processes
that take turns. datasketch compares the shingle sets of what shares a band and joins clusters, as we do, and writes nothing. datatrove
writes what it keeps and compares no sets. The corpus is Python's own library, or --input.

Needs `pip install datasketch spacy` (datatrove takes its words from spacy), which are no dependencies of the project.

COMMAND: python -m benchmarks.dedup --input=a.jsonl.gz,b.jsonl, or python -m benchmarks.dedup --signatures=10000000, or --pages=8000
"""

import argparse
import importlib.util
import itertools
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time

import numpy as np

from mtnlg.core import files
from mtnlg.factory import documents, folder, registry
from mtnlg.factory.dedup.duplicates import Duplicates
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine

_CHUNK = 1 << 16


def ours(paths: tuple[str, ...], path: pathlib.Path) -> list[int]:
    """Numbers of the documents that are left out."""
    registry.make("dedup", {}).run(paths, path, Machine(1, progress=False))
    return Duplicates(path / "duplicates").numbers().tolist()


def datasketch(paths: tuple[str, ...], path: pathlib.Path) -> list[int]:
    from datasketch import MinHash, MinHashLSH

    index, sets, kept = MinHashLSH(num_perm=260, params=(20, 13)), {}, {}

    def first_of(number: int) -> int:
        while kept[number] != number:
            number = kept[number]
        return number

    for number, (_, record) in enumerate(Inputs(paths).records()):
        words = re.findall(r"\w+", documents.parse(record)["text"].lower())
        shingles = {" ".join(words[at : at + 5]).encode() for at in range(max(len(words) - 4, 1))}
        signature = MinHash(260)
        signature.update_batch(list(shingles))
        kept[number], sets[number] = number, shingles
        for other in index.query(signature):
            if len(shingles & sets[other]) >= 0.8 * len(shingles | sets[other]):
                low, high = sorted((first_of(number), first_of(other)))
                kept[high] = low
        index.insert(number, signature)
    return [number for number, one in kept.items() if one != number]


def datatrove(paths: tuple[str, ...], path: pathlib.Path) -> list[int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    (path / "in").mkdir(parents=True)
    numbered = (documents.parse(record) | {"id": str(number)} for number, (_, record) in enumerate(Inputs(paths).records()))
    (path / "in" / "a.jsonl").write_bytes(b"".join(map(documents.line, numbered)))
    config = MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=13, hash_config=HashConfig(hash_fc="sha1"))  # xxhash 4 refuses text
    reader = JsonlReader(str(path / "in"))
    steps = [
        [reader, MinhashDedupSignature(str(path / "signatures"), config=config)],
        [MinhashDedupBuckets(str(path / "signatures"), str(path / "buckets"), config=config)],
        [MinhashDedupCluster(str(path / "buckets"), str(path / "left_out"), config=config)],
        [reader, MinhashDedupFilter(str(path / "left_out")), JsonlWriter(str(path / "kept"), compression=None)],
    ]
    for number, step in enumerate(steps):
        LocalPipelineExecutor(step, tasks=20 if number == 1 else 1, workers=1, logging_dir=str(path / "logs" / str(number))).run()
    kept = {int(json.loads(line)["id"]) for file in (path / "kept").iterdir() for line in file.open()}
    return sorted(set(range(sum(1 for _ in Inputs(paths).records()))) - kept)


PROGRAMS = {"ours": ours, "datasketch": datasketch, "datatrove": datatrove}
PROGRAMS_NEED = {"ours": "rensa", "datasketch": "datasketch", "datatrove": "spacy"}


def sample(name: str, paths: tuple[str, ...]) -> dict:
    """Of this process: seconds, processor seconds, peak memory in MB and how much of it came after the libraries, documents left out."""
    for library in ("scipy.sparse.csgraph", "rensa") if name == "ours" else (name,):
        importlib.import_module(library)
    before, start = _peak_mb(), _seconds()
    with tempfile.TemporaryDirectory() as path:
        left_out = PROGRAMS[name](paths, pathlib.Path(path) / "out")
        seconds, processor = (_seconds() - start).tolist()
    return {"seconds": seconds, "processor": processor, "peak": _peak_mb(), "grown": _peak_mb() - before, "left_out": left_out}


def _seconds() -> np.ndarray:
    """[on the wall, of the processor]."""
    return np.array([time.perf_counter(), time.process_time()])


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def library(path: pathlib.Path) -> str:
    """Python's own library as JSONL."""
    with open(path, "wb") as file:
        for source in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
            if "site-packages" not in source.parts:
                file.write(documents.line({"id": str(source), "text": source.read_text(errors="replace")}))
    return str(path)


def compare(paths: tuple[str, ...], repeats: int) -> None:
    num_documents = sum(1 for _ in Inputs(paths).records())
    megabytes = sum(len(documents.parse(record)["text"].encode()) for _, record in Inputs(paths).records()) / 1e6
    print(f"{num_documents} documents, {megabytes:.1f} MB")
    names = [name for name, module in PROGRAMS_NEED.items() if importlib.util.find_spec(module)]
    samples: dict[str, list[dict]] = {name: [] for name in names}
    for _, name in itertools.product(range(repeats), names):
        command = [sys.executable, "-m", "benchmarks.dedup", f"--sample={name}", f"--input={','.join(paths)}"]
        child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        samples[name].append(json.loads(child.stdout.splitlines()[-1]))
    print("| program | seconds, median (range) | processor seconds | documents/s | MB/s | peak MB | left out | of these by ours too |")
    print("|---|---|---|---|---|---|---|---|")
    known = set(samples["ours"][0]["left_out"])
    for name, found in samples.items():
        seconds, processor = (sorted(one[key] for one in found) for key in ("seconds", "processor"))
        middle, left_out = float(np.median(seconds)), found[0]["left_out"]
        speeds = f"{middle:.1f} ({seconds[0]:.1f}-{seconds[-1]:.1f}) | {np.median(processor):.1f} | {num_documents / middle:.0f}"
        speeds += f" | {megabytes / middle:.1f}"
        peak = f"{found[0]['peak']:.0f} (+{found[0]['grown']:.0f})"
        print(f"| {name} | {speeds} | {peak} | {len(left_out)} | {len(known & set(left_out))} |")


def time_candidates(number: int) -> None:
    """Of random signatures; every 20th has half of its bands from the one before, and every 50th its text."""
    from mtnlg.factory.dedup import candidates
    from mtnlg.factory.dedup.signatures import ROW

    numbers = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name) / "signatures"
        path.mkdir()
        with open(path / "part-00000", "wb") as file:
            for start in range(0, number, _CHUNK):
                rows = np.frombuffer(numbers.bytes(ROW.itemsize * min(_CHUNK, number - start)), ROW).copy()
                rows["num_shingles"] = 100
                for field, every, of in (("bands", 20, np.s_[:10]), ("text", 50, ...)):
                    rows[field][every::every, of] = rows[field][every - 1 : len(rows) - 1 : every, of]
                file.write(rows.tobytes())
        size = os.path.getsize(path / "part-00000")
        files.write_atomic(path / folder.DONE, json.dumps({"parts": [folder.part("part-00000", "", size)]}))
        before, start_time = _peak_mb(), time.perf_counter()
        candidates.find(path, pathlib.Path(name) / "out")
        seconds = time.perf_counter() - start_time
        found = {pairs: os.path.getsize(pathlib.Path(name) / "out" / pairs) // candidates.PAIR.itemsize for pairs in ("same", "near")}
    print(f"{number} signatures: {seconds:.1f} s, peak {_peak_mb():.0f} MB (+{_peak_mb() - before:.0f}), {found}")


def find_in_crowd(number: int) -> None:
    """Pages of 200 shingles of which 176 are the template's, and a copy of every tenth with 10 words changed; all in any order."""
    from mtnlg.factory.dedup import candidates

    numbers = random.Random(0)
    template = _new_words(numbers, 180)
    pages = [template + _new_words(numbers, 24) for _ in range(number)]
    copied = {f"copy {place}": page[:-10] + _new_words(numbers, 10) for place, page in enumerate(pages[::10])}
    found = [*enumerate(pages), *copied.items()]
    numbers.shuffle(found)
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name) / "pages.jsonl"
        path.write_bytes(b"".join(documents.line({"id": str(id), "text": " ".join(words)}) for id, words in found))
        start = time.perf_counter()
        left_out = ours((str(path),), pathlib.Path(name) / "out")
        seconds = time.perf_counter() - start
        num_pairs = os.path.getsize(pathlib.Path(name) / "out" / "candidates" / candidates.NEAR) / candidates.PAIR.itemsize
    promised = 1 - (1 - (190 / 210) ** 13) ** 20
    print(f"{len(left_out) / len(copied):.4f} of {len(copied)} copies (J 0.905) among {number} pages (J 0.786); formula: {promised:.4f}")
    print(f"{num_pairs / len(found):.1f} comparisons a document, {seconds:.1f} s")


def _new_words(numbers: random.Random, number: int) -> list[str]:
    return [f"{word:x}" for word in numbers.sample(range(1 << 40), number)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="files and folders of JSONL (default: Python's own library)")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each program (default: 3)")
    parser.add_argument("--signatures", type=int, help="times the search for candidates among so many")
    parser.add_argument("--pages", type=int, help="counts the copies found among so many pages of one template")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.signatures:
        time_candidates(options.signatures)
    elif options.pages:
        find_in_crowd(options.pages)
    elif options.sample:
        print(json.dumps(sample(options.sample, tuple(options.input.split(",")))))
    else:
        with tempfile.TemporaryDirectory() as path:
            paths = tuple(options.input.split(",")) if options.input else (library(pathlib.Path(path) / "library.jsonl"),)
            compare(paths, options.repeats)


if __name__ == "__main__":
    main()
