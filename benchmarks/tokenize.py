"""Times `mtnlg data tokenize` next to the bare libraries on the same text: MB of text per processor second, then MB/s by processes.

Ours reads JSONL and writes .bin and .idx; a library has the texts in memory already and only makes ids. Every sample is a fresh process
and all take turns. A library whose ids differ from ours is named and does not count.

COMMAND: python -m benchmarks.tokenize --tokenizer=gpt2,llama2_sp --input=texts.jsonl
"""

import argparse
import hashlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

OURS = "mtnlg"
LIBRARIES = ("tiktoken", "tokenizers", "sentencepiece")


def write_library(path: pathlib.Path) -> None:
    """The library of this Python as JSONL."""
    from mtnlg.corpus import sources

    with path.open("w") as file:
        for document in sources.documents("python", max_document_bytes=10**9):
            file.write(json.dumps({"id": document.id, "text": document.text}) + "\n")


def texts(path: str) -> list[str]:
    with open(path) as file:
        return [json.loads(line)["text"] for line in file]


def encoder(library: str, tokenizer: str):
    """A function from texts to arrays of ids, in one thread; None where the library does not read this tokenizer."""
    path = pathlib.Path(tokenizer)
    models = [path] if path.is_file() else sorted(path.glob("*.model*"))
    if library == "sentencepiece":
        if not models:
            return None
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(models[0]))
        return lambda batch: model.encode(batch, return_type="numpy", num_threads=1)
    if models:
        return None
    vocabulary = json.loads((path / "vocab.json").read_text())
    if library == "tokenizers":
        import tokenizers

        model = tokenizers.ByteLevelBPETokenizer(str(path / "vocab.json"), str(path / "merges.txt"))
        return lambda batch: [np.array(model.encode(text).ids, np.uint32) for text in batch]
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    from mtnlg.data import byte_level

    try:
        ranks = data_gym_to_mergeable_bpe_ranks(str(path / "merges.txt"), str(path / "vocab.json"))
    except AssertionError:  # an end of document of its own place
        ranks = {byte_level.spelled_bytes(token): id for token, id in vocabulary.items() if token != byte_level.END_OF_DOCUMENT}
    model = tiktoken.Encoding("benchmark", pat_str=byte_level.PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda batch: [model.encode_to_numpy(text, disallowed_special=()) for text in batch]


def sample(engine: str, tokenizer: str, path: str, num_workers: int) -> dict | None:
    """{seconds, of the processor, sha256 of the ids} of one run; loading is not timed, as a corpus is larger than this."""
    if engine != OURS:
        encode, read = encoder(engine, tokenizer), texts(path)
        if encode is None:
            return None
        encode(read[:2])
        start = _seconds()
        arrays = encode(read)
        spent = _seconds() - start
        digest = hashlib.sha256(np.concatenate(arrays).astype(np.int32).tobytes()).hexdigest()
        return {"seconds": spent.tolist(), "ids": digest}
    from mtnlg.data import tokenizer as tokenizers
    from mtnlg.data.store import Store
    from mtnlg.factory import registry
    from mtnlg.factory.passes import Machine

    stage, eod_id = registry.make("tokenize", {"tokenizer": tokenizer}), tokenizers.load(tokenizer).eod_id
    with tempfile.TemporaryDirectory() as folder:
        small = pathlib.Path(folder, "small.jsonl")
        small.write_text(json.dumps({"text": "a"}))
        loading = _timed(stage, str(small), f"{folder}/small", Machine(num_workers, progress=False))
        spent = _timed(stage, path, f"{folder}/out", Machine(num_workers, progress=False)) - loading
        store = Store(f"{folder}/out/tokens")
        ids = store.read(0, store.num_tokens)
    return {"seconds": spent.tolist(), "ids": hashlib.sha256(ids[ids != eod_id].tobytes()).hexdigest()}


def _timed(stage, path: str, output: str, machine) -> np.ndarray:
    start = _seconds()
    stage.run((path,), output, machine)
    return _seconds() - start


def _seconds() -> np.ndarray:
    """[on the wall, of the processor, with ended children]."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, metavar="PATH,...", help="folders with vocab.json and merges.txt, or .model files")
    parser.add_argument("--input", metavar="FILE.jsonl", help="text (default: the library of this Python)")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes of each setting (default: 5)")
    parser.add_argument("--workers", default="1,2,4", help="processes of the second table (default: 1,2,4)")
    parser.add_argument("--sample", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        engine, num_workers = options.sample.split(",")
        print(json.dumps(sample(engine, options.tokenizer, options.input, int(num_workers))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = options.input or str(pathlib.Path(folder, "python.jsonl"))
        if not options.input:
            write_library(pathlib.Path(path))
        measure(options, path)


def measure(options: argparse.Namespace, path: str) -> None:
    megabytes = sum(len(text.encode()) for text in texts(path)) / 1e6
    print(f"{megabytes:.1f} MB of text, load {os.getloadavg()[0]:.1f}\n")
    scaling = [(OURS, int(workers)) for workers in options.workers.split(",") if int(workers) > 1]
    for tokenizer in options.tokenizer.split(","):
        found = {setting: [] for setting in [(OURS, 1), *((library, 1) for library in LIBRARIES), *scaling]}
        for number in range(options.repeats):
            for setting in found:
                print(f"{tokenizer}, round {number + 1}/{options.repeats}: {setting}", file=sys.stderr)
                found[setting].append(_child(setting, tokenizer, path))
        _show(tokenizer, {setting: samples for setting, samples in found.items() if samples[0]}, megabytes)


def _child(setting: tuple[str, int], tokenizer: str, path: str) -> dict | None:
    command = [sys.executable, "-m", "benchmarks.tokenize", f"--sample={setting[0]},{setting[1]}"]
    child = subprocess.run(
        [*command, f"--tokenizer={tokenizer}", f"--input={path}"],
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def _show(tokenizer: str, found: dict, megabytes: float) -> None:
    ours = found[OURS, 1]
    same = {library for (library, _), samples in found.items() if samples[0]["ids"] == ours[0]["ids"]}
    speeds = {setting: statistics.median(megabytes / one["seconds"][1] for one in samples) for setting, samples in found.items()}
    fastest = max(speed for (library, _), speed in speeds.items() if library in same - {OURS})
    print(f"| {tokenizer} | processes | MB per processor second | of the fastest library | MB/s | same ids |\n|---|---|---|---|---|---|")
    for (library, workers), samples in found.items():
        speed = speeds[library, workers]
        wall = statistics.median(megabytes / one["seconds"][0] for one in samples)
        print(f"| {library} | {workers} | {speed:.2f} | {speed / fastest:.2f} | {wall:.2f} | {'yes' if library in same else 'no'} |")
    print()


if __name__ == "__main__":
    main()
