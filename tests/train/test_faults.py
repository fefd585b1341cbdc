"""A run that is killed, whatever it is at, and started again ends with the bits of one that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from runs import arrays, losses, require_same

from mtnlg.core import config as configs
from mtnlg.core import fault
from mtnlg.pretrain import run as pretrain
from mtnlg.run import goodput, metrics

ROOT = pathlib.Path(__file__).parents[2]
# One after the other in one run, which saves at steps 3 and 6.
FEW = ("save,step:3", "step,step:5", "rename,step:6", "evaluate,step:6")
ALL = ("prepare", "restore", "batch,step:1", "step,step:1", "step,step:2", "save,step:3", "publish,step:3", "rename,step:3", "step,step:4")
ALL += ("restore", "batch,step:6", "save,step:6", "publish,step:6", "rename,step:6", "evaluate,step:6", "restore", "evaluate,step:6")


def heldout(workdir):
    return [line["heldout_loss"] for line in metrics.read(workdir / "metrics.jsonl") if "heldout_loss" in line]


@pytest.mark.parametrize("kills", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_killed_and_started_again_it_is_the_same_run(kills, resolve, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pretrain.pretrain(resolve(data__directory=str(tmp_path / "tokens")), str(whole), {})
    config = configs.to_nested(resolve(data__directory=str(killed / "tokens")))
    (tmp_path / "config.json").write_text(json.dumps(config))
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def started(faults: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mtnlg", "train", f"--config={tmp_path / 'config.json'}", f"--workdir={killed}"]
        return subprocess.run(command, cwd=ROOT, env=os.environ | compiled | {fault.VARIABLE: faults}, capture_output=True, text=True)

    for phase in kills:
        ended = started(f"kill@phase:{phase}")
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    ended = started("")
    assert ended.returncode == 0, ended.stderr
    require_same(arrays(whole, 6), arrays(killed, 6))
    assert losses(whole) == losses(killed), "a line for every step, and one"
    assert heldout(whole) == heldout(killed) and len(heldout(whole)) == 1
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == ["3", "6"]
    account = goodput.read(killed / goodput.FILE)
    assert account.num_starts == 1 + sum(phase != "prepare" for phase in kills) - kills.count("restore")
    assert account.secs["down"] > 0 and account.secs["lost"] > 0
