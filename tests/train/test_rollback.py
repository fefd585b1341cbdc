"""A spike that samples of the order make is gone back from and round: the run ends as one that was told to leave them out."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint
from mtnlg.core import config as configs
from mtnlg.core import fault
from mtnlg.core.errors import ConfigError, NumericalError
from mtnlg.pretrain import rollback
from mtnlg.pretrain import run as pretrain
from mtnlg.pretrain.telling import Telling
from mtnlg.run import goodput, metrics

ROOT = pathlib.Path(__file__).parents[2]
STEPS, BATCH = 36, 4
GUARD = {"guard__spike_window": "10", "guard__spike_steps": "2", "guard__rollback_steps": "3", "guard__skip_steps": "4"}
# Two batches, of steps 25 and 26: back to step 21, and round the samples of 22 to 26.
PLANTED, LEFT_OUT = (97, 101), "84:104"


@pytest.fixture(scope="module")
def run_of(resolve):
    """A function: the config of a run of 36 steps with these changes."""
    return lambda **changes: resolve(train__num_steps=str(STEPS), checkpoint__every_steps="5", optimizer__learning_rate="0.02", **changes)


@pytest.fixture(scope="module")
def told_to_leave_them_out(run_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("skips")
    pretrain.pretrain(run_of(data__skip_ranges=LEFT_OUT), str(workdir), {})
    return workdir


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setenv(fault.VARIABLE, ";".join(f"garble@phase:batch,sample:{draw}" for draw in PLANTED))


def require_same_run(workdir, expected):
    require_same(arrays(workdir, STEPS), arrays(expected, STEPS))
    assert losses(workdir) == losses(expected)
    assert checkpoint.meta(workdir / "checkpoints" / str(STEPS))["skips"] == [LEFT_OUT]


@pytest.mark.parametrize("mesh", [{}, {"mesh__data": "2", "mesh__zero": "2"}], ids=["one device", "data"])
def test_a_spike_is_rolled_back_and_its_samples_are_left_out(run_of, tmp_path, planted, told_to_leave_them_out, mesh, capsys):
    pretrain.pretrain(run_of(**GUARD, **mesh), str(tmp_path), {})
    assert rollback.read(tmp_path) == [((84, 104), 25, 26)]
    assert f"the loss stands out from step 25 on: going back, and leaving out the samples {LEFT_OUT}" in capsys.readouterr().out
    if not mesh:
        require_same_run(tmp_path, told_to_leave_them_out)
    aside = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.isdecimal())
    assert aside == ["25.rolledback"]
    account = goodput.read(tmp_path / goodput.FILE)
    assert account.num_starts == 2 and account.secs["lost"] > 0


def test_it_is_only_told_of_where_nobody_wants_to_go_back(run_of, tmp_path, planted):
    pretrain.pretrain(run_of(**GUARD | {"guard__rollback_steps": "0"}, log__every_steps="50"), str(tmp_path), {})
    told = [line["step"] for line in metrics.read(tmp_path / "metrics.jsonl") if line.get("spike")]
    assert told[:2] == [25, 26] and not (tmp_path / rollback.FILE).exists()


@pytest.mark.parametrize("stop", [20, 24, 25])
def test_stopped_before_and_within_it_is_the_same_run(run_of, tmp_path, planted, told_to_leave_them_out, stop, monkeypatch):
    """What stood out before a stop is known after it."""
    original = Telling.report

    def report(self, told, stands_out):
        original(self, told, stands_out)
        if told.position.step == stop:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Telling, "report", report)
        stopped = pretrain.pretrain(run_of(**GUARD), str(tmp_path), {})
    assert not stopped.finished
    pretrain.pretrain(run_of(**GUARD), str(tmp_path), {})
    require_same_run(tmp_path, told_to_leave_them_out)


def test_killed_before_the_checkpoints_are_set_aside_it_is_the_same_run(run_of, tmp_path, told_to_leave_them_out):
    (tmp_path / "config.json").write_text(json.dumps(configs.to_nested(run_of(**GUARD))))
    workdir = tmp_path / "run"
    faults = [f"garble@phase:batch,sample:{draw}" for draw in PLANTED]

    def started(*more):
        command = [sys.executable, "-m", "mtnlg", "train", f"--config={tmp_path / 'config.json'}", f"--workdir={workdir}"]
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | {fault.VARIABLE: ";".join([*faults, *more])}, capture_output=True, text=True
        )

    ended = started("kill@phase:rollback")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert rollback.read(workdir) and not list((workdir / "checkpoints").glob("*.rolledback"))
    ended = started()
    assert ended.returncode == 0, ended.stderr
    require_same_run(workdir, told_to_leave_them_out)


@pytest.mark.slow
@pytest.mark.parametrize("every", ["1", "26"], ids=["both steps that are saved", "to the very start"])
def test_ended_between_finding_it_and_writing_it_down_it_is_the_same_run(
    run_of, tmp_path, planted, told_to_leave_them_out, every, monkeypatch
):
    """The newest checkpoints, of the step that shows the spike or of the next one, have it."""

    def ended(self):
        raise ConnectionError("here the process ends")

    config = run_of(**GUARD)
    config = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, every_steps=int(every)))
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(pretrain.Run, "go_back", ended)
        pretrain.pretrain(config, str(tmp_path), {})
    assert checkpoint.whole_steps(tmp_path / "checkpoints")[-1] == (27 if every == "1" else 26)
    pretrain.pretrain(config, str(tmp_path), {})
    require_same_run(tmp_path, told_to_leave_them_out)


def test_it_goes_back_so_often_and_no_more(run_of, tmp_path, planted):
    with pytest.raises(
        NumericalError, match=r"stands out from step 25 on, and the run has gone back 0 times already \(guard.max_rollbacks\)"
    ):
        pretrain.pretrain(run_of(**GUARD, guard__max_rollbacks="0"), str(tmp_path), {})


def test_what_was_read_cannot_be_left_out_later(told_to_leave_them_out, run_of):
    with pytest.raises(ConfigError, match="samples from 4 on cannot be left out any more: the run is at 164"):
        pretrain.pretrain(run_of(data__skip_ranges="4:8"), str(told_to_leave_them_out), {})


def test_without_a_look_for_spikes_nothing_could_be_gone_back_from(run_of):
    with pytest.raises(
        ConfigError, match=r"guard.rollback_steps=3 goes back from spikes, and none are looked for: take guard.spike_deviations=6.0"
    ):
        run_of(**GUARD, guard__spike_deviations="none")


def test_megatrons_order_cannot_be_cut(run_of):
    with pytest.raises(ConfigError, match=r"guard.rollback_steps=3 cannot be honoured with data.order=megatron"):
        run_of(**GUARD, data__order="megatron")
