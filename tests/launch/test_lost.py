"""A job that loses a process, by a kill or a hang, ends in time, says whom, and goes on from its last checkpoint."""

import json
import re

import pytest
from lost import end, lost, start
from runs import losses, require_same

from mtnlg import checkpoint

CONFIG = {
    "model": {"num_layers": 1, "d_model": 16, "num_heads": 2, "seq_len": 16, "vocab_size": 300},
    "data": {"heldout_fraction": 0.2},
    "train": {"batch_size": 4, "num_steps": 100000},
    "log": {"every_steps": 1, "tensorboard": False},
    "mesh": {"data": 4},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    (folder / "docs.jsonl").write_text("\n".join(json.dumps({"text": f"the quick brown fox {i} " * 20}) for i in range(40)))
    data = CONFIG["data"] | {"source": [str(folder / "docs.jsonl")], "directory": str(folder / "tokens")}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"data": data}))
    return folder / "config.json"


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(("kind", "how"), [("kill", "was killed by SIGKILL"), ("hang", "is stopped")])
def test_each_process_killed_and_hung(config, tmp_path, process, kind, how):
    ending = end(start(config, tmp_path / "run", fault=f"{kind}@phase:step,step:3,process:{process}"))
    assert not lost(ending, process, how), ending


@pytest.mark.slow
def test_one_of_three_is_named(config, tmp_path):
    overrides = ["--config.mesh.data=6", "--config.train.batch_size=6", "--config.model.d_model=24"]
    ending = end(start(config, tmp_path / "run", *overrides, num_processes=3, fault="hang@phase:step,step:3,process:2"))
    assert not lost(ending, 2, "is stopped"), ending


def test_a_slow_process_is_named_within_three_intervals(config, tmp_path):
    """And only it; the third interval is judged at the end of the fourth."""
    overrides = ["--config.train.num_steps=8", "--config.log.every_steps=2"]
    out, err = start(config, tmp_path / "run", *overrides, fault="slow@phase:batch,process:1").communicate(timeout=600)
    (line,) = [line for line in out.splitlines() if "is slow" in line]
    assert re.fullmatch(r"process 1 \(host \S+\) is slow: its batches take 0\.[3-9]\d s a step, those of the others 0\.\d\d s", line)
    assert "finished at step 8" in out, err


@pytest.mark.slow
def test_a_supervised_job_that_lost_a_process_is_the_same_run(config, tmp_path):
    overrides = ["--config.train.num_steps=6", "--config.checkpoint.every_steps=2"]
    fault = f"kill@phase:step,step:5,process:1,once:{tmp_path / 'spent'}"
    whole, lost_one = tmp_path / "whole", tmp_path / "lost"
    assert start(config, whole, *overrides).communicate(timeout=600) and checkpoint.whole_steps(whole / "checkpoints")[-1] == 6
    supervised = start(config, lost_one, *overrides, fault=fault, before=("supervise", "--"))
    _, err = supervised.communicate(timeout=600)
    assert supervised.returncode == 0, err
    assert "exit code 69 (a process was lost), saved up to step " in err
    for part in ("params", "optimizer"):
        require_same(*(checkpoint.stored_arrays(run / "checkpoints" / "6", part) for run in (lost_one, whole)))
    assert losses(lost_one) == losses(whole)
