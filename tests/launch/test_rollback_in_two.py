"""A spike is gone back from by all processes of a job, also where the others learn later than process 0 what it has set aside."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mtnlg import checkpoint
from mtnlg.core import fault
from mtnlg.pretrain import rollback
from mtnlg.run import metrics

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import pathlib

from mtnlg.core import config as configs


def get_config():
    config = configs.default()
    config.model.update(num_layers=1, d_model=16, num_heads=2, seq_len=16, vocab_size=300)
    config.data.source = (str(pathlib.Path(__file__).with_name("docs.jsonl")),)
    config.data.heldout_fraction = 0.2
    config.train.update(batch_size=8, num_steps=30)
    config.optimizer.update(learning_rate=0.02)
    config.checkpoint.update(every_steps=5, keep_last=9)
    config.log.update(every_steps=1, tensorboard=False)
    config.mesh.update(data=4, tensor=2, zero=2)
    return config
"""
COMMAND = """
import sys
import time

import jax

from mtnlg import checkpoint
from mtnlg.cli.main import main
from mtnlg.train import peak

peak.best_gemm_flops_per_sec = lambda dtype: 1e11
meta = checkpoint.meta


def late(step_dir):
    time.sleep(jax.process_index())
    return meta(step_dir)


checkpoint.meta = late
sys.exit(main(sys.argv[1:]))
"""
LAUNCHER = "import sys; from mtnlg.launch import local; sys.exit(local.run([sys.executable, '-c', *sys.argv[1:]], 2, 4))"
GUARD = {"spike_deviations": 3, "spike_window": 10, "spike_steps": 2, "rollback_steps": 3, "skip_steps": 4}


def trained(folder, name, *overrides, **environment):
    train = ["train", f"--config={folder / 'tiny.py'}", f"--workdir={folder / name}", f"--config.data.directory={folder / 'tokens'}"]
    command = [sys.executable, "-c", LAUNCHER, COMMAND, *train, *overrides]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = metrics.read(folder / name / "metrics.jsonl")
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


@pytest.mark.slow
def test_all_processes_go_back_together(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    words, random = ["the", "quick", "brown", "fox", "jumps", "over", "seven", "wizards", "with", "quartz"], np.random.default_rng(0)
    (tmp_path / "docs.jsonl").write_text("\n".join(json.dumps({"text": " ".join(random.choice(words, 60))}) for _ in range(40)))
    planted = ";".join(f"garble@phase:batch,sample:{draw}" for draw in (160, 168))  # those of steps 21 and 22
    guard = [f"--config.guard.{key}={value}" for key, value in GUARD.items()]
    losses = trained(tmp_path, "spike", *guard, **{fault.VARIABLE: planted})
    assert rollback.read(tmp_path / "spike") == [((136, 176), 21, 22)]
    assert losses == trained(tmp_path, "told", "--config.data.skip_ranges=136:176")
    assert checkpoint.meta(tmp_path / "spike" / "checkpoints" / "30")["skips"] == ["136:176"]
