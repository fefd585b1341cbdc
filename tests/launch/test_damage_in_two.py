"""A bit that flips in one process of a job ends all of them, each with the same words."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import pathlib

from mtnlg.core import config as configs


def get_config():
    config = configs.default()
    config.model.update(num_layers=1, d_model=16, num_heads=2, seq_len=16, vocab_size=300)
    config.data.source = (str(pathlib.Path(__file__).with_name("docs.txt")),)
    config.data.heldout_fraction = 0.5
    config.train.update(batch_size=8, num_steps=6)
    config.log.update(tensorboard=False)
    config.mesh.update(data=4, tensor=2, zero=0)
    config.guard.update(replay_every_steps=2, replicas_every_steps=1)
    return config
"""
COMMAND = """
import itertools
import sys

import jax
from flips import draw

from mtnlg.cli.main import main
from mtnlg.train import peak, step

peak.best_gemm_flops_per_sec = lambda dtype: 1e11
make, number = step.make, itertools.count(1)


def faulty(config, mesh):
    program = make(config, mesh)

    def stepped(*arguments):
        state, told = program(*arguments)
        if next(number) == 3 and jax.process_index() == 1:
            state, *_ = draw(state, lambda path: path == "params/blocks/mlp_norm/scale", 5)
        return state, told

    return stepped


step.make = faulty
sys.exit(main(sys.argv[1:]))
"""
LAUNCHER = "import sys; from mtnlg.launch import local; sys.exit(local.run([sys.executable, '-c', *sys.argv[1:]], 2, 4))"


def test_a_flipped_bit_in_one_process_ends_both(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    (tmp_path / "docs.txt").write_text("\n\n".join(f"the {number} quick brown foxes jump over {number + 1} dogs" for number in range(200)))
    train = ["train", f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'train'}"}
    command = [sys.executable, "-c", LAUNCHER, COMMAND, *train]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 17, done.stderr
    told = "mtnlg: error: of 8 copies of params/blocks/mlp_norm/scale those differ that lie on device "
    lines = [line for line in done.stderr.splitlines() if told in line]
    assert lines and all("of process 1 (data" in line and "(step 3). Try: " in line for line in lines)
    assert not (tmp_path / "run" / "checkpoints").exists()
