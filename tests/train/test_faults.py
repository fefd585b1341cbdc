"""A run that is killed, whatever it is at, and started again ends with the bits of one that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from runs import arrays, losses, require_same

from mtnlg import pretrain
from mtnlg.core import config as configs
from mtnlg.core import fault
from mtnlg.run import metrics

ROOT = pathlib.Path(__file__).parents[2]
# One after the other in one run, which saves at steps 3 and 6; (the fault, the step that the next start goes on from).
FEW = [("save,step:3", 0), ("step,step:5", 3), ("rename,step:6", 3), ("evaluate,step:6", 6)]
ALL = [
    *[
        ("prepare", 0),
        ("restore", 0),
        ("batch,step:1", 0),
        ("step,step:1", 0),
        ("step,step:2", 0),
        ("save,step:3", 0),
        ("publish,step:3", 0),
    ],
    *[("rename,step:3", 0), ("step,step:4", 3), ("restore", 3), ("batch,step:6", 3), ("save,step:6", 3), ("publish,step:6", 3)],
    *[("rename,step:6", 3), ("evaluate,step:6", 6), ("restore", 6), ("evaluate", 6)],
]


@pytest.mark.parametrize("kills", [FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_killed_and_started_again_it_is_the_same_run(kills, resolve, tmp_path):
    config = resolve(data__directory=str(tmp_path / "tokens"))
    pretrain.pretrain(config, str(tmp_path / "whole"), {})
    nested = configs.to_nested(resolve(data__directory=str(tmp_path / "killed" / "tokens")))
    (tmp_path / "config.json").write_text(json.dumps(nested))

    def started(faults: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mtnlg", "train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path / 'killed'}"]
        own = {
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
        }
        environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
        return subprocess.run(command, cwd=ROOT, env=environment | own | {fault.VARIABLE: faults}, capture_output=True, text=True)

    came_from = 0
    for phase, goes_on_at in kills:
        ended = started(f"kill@phase:{phase}")
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert f"goes on at step {came_from}" in ended.stdout or came_from == 0 or "restore" in phase or "prepare" in phase, ended.stdout
        came_from = goes_on_at
    ended = started("")
    assert ended.returncode == 0, ended.stderr
    require_same(arrays(tmp_path / "whole", 6), arrays(tmp_path / "killed", 6))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed"), "a line for every step, and one"
    heldout = [
        [line["heldout_loss"] for line in metrics.read(tmp_path / name / "metrics.jsonl") if "heldout_loss" in line]
        for name in ("whole", "killed")
    ]
    assert heldout[0] == heldout[1] and len(heldout[0]) == 1
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()) == ["3", "6"]
