"""A run that its watchdog ends, its supervisor starts again, a file stops, and that the file then holds back."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint
from mtnlg.core import config as configs
from mtnlg.core import fault
from mtnlg.core.errors import ConfigError
from mtnlg.pretrain import run as pretrain
from mtnlg.pretrain.telling import Telling

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(resolve, tmp_path_factory):
    """A run of six steps without a stop."""
    workdir = tmp_path_factory.mktemp("whole")
    pretrain.pretrain(resolve(), str(workdir), {})
    return workdir


def test_a_file_stops_a_run_that_starts_again_when_it_is_deleted(whole, resolve, tmp_path, monkeypatch, capfd):
    original, stop = Telling.report, tmp_path / "stop"

    def make_it(self, report, stands_out):
        original(self, report, stands_out)
        if report.position.step == 1:  # read one step late: the second step is on its way
            stop.touch()

    monkeypatch.setattr(Telling, "report", make_it)
    stopped = pretrain.pretrain(resolve(), str(tmp_path), {})
    assert (stopped.finished, stopped.position.step) == (False, 2)
    assert f"stopped, to be continued when {stop} is deleted, at step 2, saved in " in capfd.readouterr().out
    with pytest.raises(ConfigError, match=rf"a file says that this run is to stop \({stop}\)\. Try: rm {stop}"):
        pretrain.pretrain(resolve(), str(tmp_path), {})
    stop.unlink()
    monkeypatch.setattr(Telling, "report", original)
    assert pretrain.pretrain(resolve(), str(tmp_path), {}).finished
    require_same(arrays(tmp_path, 6), arrays(whole, 6))
    assert losses(tmp_path) == losses(whole)


@pytest.mark.slow
def test_killed_and_stuck_under_a_supervisor_it_is_the_same_run(whole, resolve, tmp_path):
    """Killed in step 2, before anything is saved, and asleep for ever in step 5, until the watchdog ends it."""
    killed, config = tmp_path / "killed", tmp_path / "config.json"
    config.write_text(json.dumps(configs.to_nested(resolve())))
    faults = f"kill@phase:step,step:2,once:{tmp_path / 'first'};stall@phase:step,step:5,once:{tmp_path / 'second'}"
    train = ["train", f"--config={config}", f"--workdir={killed}", "--config.watchdog.step_secs=10"]
    command = [sys.executable, "-m", "mtnlg", "supervise", "--", *train]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {fault.VARIABLE: faults}, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    told = [line.partition("Z: ")[2] for line in ended.stderr.splitlines() if "; restart " in line]
    assert told == [
        "killed by SIGKILL, no step is saved yet; restart 1 of 3 without progress, in 1 s",
        "exit code 74 (it was stuck), saved up to step 3; restart 1 of 3 without progress, in 1 s",
    ]
    assert "mtnlg: error: the run is stuck: step has taken " in ended.stderr and "most recent call first" in ended.stderr
    require_same(arrays(killed, 6), arrays(whole, 6))
    assert losses(killed) == losses(whole)
    assert checkpoint.whole_steps(killed / "checkpoints") == [3, 6]
