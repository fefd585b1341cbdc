"""Peak memory and speed of `mtnlg convert`, of made-up Llama folders: does memory hang on the largest tensor of a layer alone?

    python -m benchmarks.convert --megabytes=64,512 --layers=2,6

The mark is 1.3 times the largest tensor plus 1 GB (1e9 bytes).
"""

import argparse
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

from mtnlg.interop import huggingface, llama, safetensors
from mtnlg.interop.layout import Layout
from mtnlg.interop.settings import Settings
from mtnlg.interop.tensors import Stored

TEXT = "the cat sat on the mat, and the dog lay under the table.\n" * 5
RATIO, ROOM_BYTES = 1.3, 1e9
BLOCK = 1 << 24


def make(folder: pathlib.Path, megabytes: int, layers: int) -> int:
    """A folder whose largest tensor, in float32, has so many megabytes; bytes of it. Written in blocks, in two files or more."""
    from mtnlg.data import tokenizer as tokenizers

    width = max(int((megabytes * 1e6 / 16) ** 0.5) // 128 * 128, 128)  # F = 4 D
    config = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": width // 128}
    config |= {"vocab_size": 4096, "max_position_embeddings": 2048, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    model = llama.read_llama(Settings(config))
    folder.mkdir(parents=True)
    (folder / huggingface.CONFIG).write_text(json.dumps(config))
    shapes = Layout(model, llama.tensors(model)).shapes()
    stored = {name: Stored(shape, np.dtype("float32")) for name, shape in shapes.items()}
    shards = safetensors.shards(stored, 4_000_000_000)
    named = list(zip(safetensors.shard_names(len(shards)), shards, strict=True))
    noise = np.random.RandomState(0).standard_normal(BLOCK // 4).astype(np.float32).tobytes()
    for file, names in named:
        with (folder / file).open("wb") as out:
            out.write(safetensors.header({name: stored[name] for name in names}))
            for name in names:
                left = int(np.prod(shapes[name])) * 4
                while left:
                    left -= out.write(noise[:left])
    if len(named) > 1:
        (folder / safetensors.INDEX).write_text(safetensors.index(stored, named))
    tokenizers.train([TEXT], folder / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
    return max(int(np.prod(shape)) * 4 for shape in shapes.values())


def measured(*arguments: str) -> tuple[int, float]:
    """(peak bytes, seconds) of a command in a process of its own."""
    script = (
        "import resource, sys; from mtnlg.cli import main; code = main.main(sys.argv[1:]); "
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return int(re.search(r"peak (\d+)", done.stdout)[1]), time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="64,512", help="of the largest tensor of a layer")
    parser.add_argument("--layers", default="2,6")
    options = parser.parse_args()
    print("largest tensor   layers     all of it   way          peak     mark   of the mark   seconds")
    for megabytes in map(int, options.megabytes.split(",")):
        for layers in map(int, options.layers.split(",")):
            with tempfile.TemporaryDirectory() as where:
                source = pathlib.Path(where) / "hf"
                largest = make(source, megabytes, layers)
                size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
                for way, arguments in (("hf to run", ("run", "hf", "run")), ("run to hf", ("hf", "run", "back"))):
                    to, taken, made = arguments
                    peak, secs = measured("convert", f"--to={to}", f"{where}/{taken}", f"{where}/{made}")
                    mark = RATIO * largest + ROOM_BYTES
                    print(
                        f"{largest / 1e6:11,.0f} MB {layers:8} {size / 1e9:10.2f} GB   {way:9} {peak / 1e6:6,.0f} MB {mark / 1e6:6,.0f} MB "
                        f"{peak / mark:13.2f} {secs:9.1f}",
                        flush=True,
                    )
                    shutil.rmtree(f"{where}/{taken}")


if __name__ == "__main__":
    main()
