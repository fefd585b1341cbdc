"""Training runs of a tiny model as processes of their own, and what is compared of them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np

from mtnlg import checkpoint
from mtnlg.core import fault, schema
from mtnlg.run import metrics

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ("params", "optimizer")
STEPS, SAVES = 6, 2  # of a run; it saves at every second one
TINY = {
    "model": {"num_layers": 2, "d_model": 16, "num_heads": 2, "seq_len": 16, "vocab_size": 300},
    "train": {"num_steps": STEPS, "batch_size": 4},
    "optimizer": {"learning_rate": 0.01},
    "checkpoint": {"every_steps": SAVES, "keep_last": 9},
    "log": {"every_steps": 1, "norms_every_steps": 0, "tensorboard": False},
    "data": {"heldout_fraction": 0.2},
}
_OF_TIME = ("tokens_per_sec", "mfu")  # in metrics.jsonl, and no two runs have the same


class Inputs:
    """A folder with forty small documents and the config that reads them; programs that were compiled are kept there."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        words, random = ["the", "quick", "brown", "fox", "jumps", "over", "seven", "wizards", "with", "quartz"], np.random.default_rng(0)
        (folder / "docs.jsonl").write_text("\n".join(json.dumps({"text": " ".join(random.choice(words, 60))}) for _ in range(40)))
        config = TINY | {"data": TINY["data"] | {"source": [str(folder / "docs.jsonl")]}}
        (folder / "config.json").write_text(json.dumps(config))

    def command(self, workdir: pathlib.Path, *overrides: str) -> list[str]:
        """What starts a run, as mtnlg's own arguments."""
        return ["train", f"--config={self.folder / 'config.json'}", f"--workdir={workdir}", *overrides]

    def environment(self, faults: str = "", num_devices: int = 4) -> dict[str, str]:
        """Of a process: its faults and its devices."""
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        devices = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices), "XLA_FLAGS": ""}
        return os.environ | compiled | devices | {fault.VARIABLE: faults}

    def run(self, arguments: list[str], faults: str = "") -> subprocess.CompletedProcess:
        """Until it ends."""
        command = [sys.executable, "-m", "mtnlg", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment(faults), capture_output=True, text=True)

    def whole(self, workdir: pathlib.Path, *overrides: str) -> pathlib.Path:
        """A run without a fault. Raises RuntimeError when it fails nevertheless."""
        ended = self.run(self.command(workdir, *overrides))
        if ended.returncode:
            raise RuntimeError(f"a run without a fault failed: {ended.stderr}")
        return workdir


def random_batch(model: schema.Model, rows: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """One microbatch, [1, B, L], of random tokens that all count."""
    tokens = random.integers(0, model.vocab_size, (1, rows, model.seq_len + 1), np.int32)
    ones = np.ones_like(tokens[..., 1:])
    batch = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "positions": ones.cumsum(-1, dtype=np.int32) - 1}
    return batch | {"segment_ids": ones, "weights": ones.astype(np.float32)}


def differences(one: pathlib.Path, other: pathlib.Path, step: int = STEPS) -> list[str]:
    """In what two runs differ, bit by bit: arrays of their last checkpoint, and every line of their metrics but for the speed."""
    here, there = _bits(one, step), _bits(other, step)
    found = [name for name in here | there if here.get(name) != there.get(name)]
    told = [[{k: v for k, v in line.items() if k not in _OF_TIME} for line in metrics.read(run / "metrics.jsonl")] for run in (one, other)]
    return found + ["metrics.jsonl"] * (told[0] != told[1])


def _bits(run: pathlib.Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint."""
    path = run / "checkpoints" / str(step)
    return {f"{part}/{name}": a.tobytes() for part in PARTS for name, a in checkpoint.stored_arrays(path, part).items()}
