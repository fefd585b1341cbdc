"""A full disk: a save is tried once more at the next step; then the run ends, with path and bytes, and started again is the same run."""

import errno
import os

import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint
from mtnlg.core import fault, files, manifest
from mtnlg.core.errors import CannotWrite, TemporaryFailure
from mtnlg.pretrain import run as pretrain


@pytest.fixture(scope="module")
def resolve(resolve):
    return lambda **changes: resolve(**{"checkpoint__every_steps": "2", "eval__every_steps": "2"} | changes)


@pytest.fixture(scope="module")
def whole(resolve, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    pretrain.pretrain(resolve(), str(workdir), {})
    return workdir


def require_the_same_run(workdir, whole):
    require_same(arrays(workdir, 6), arrays(whole, 6))
    assert losses(workdir) == losses(whole)
    assert not [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdecimal()], "nothing is left behind"


@pytest.mark.parametrize("phase", ["save", "publish", "rename"])
def test_a_disk_that_was_full_for_a_moment(resolve, whole, tmp_path, monkeypatch, capsys, phase):
    monkeypatch.setenv(fault.VARIABLE, f"full@phase:{phase},step:2,once:{tmp_path / 'once'}")
    pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    told = capsys.readouterr().out
    assert told.count("a save has failed, and is tried once more with step ") == 1
    assert "bytes at least are needed" in told and f"{tmp_path / 'run' / 'checkpoints' / '2.saving'})" in told
    steps = checkpoint.whole_steps(tmp_path / "run" / "checkpoints")
    assert (2 in steps) == (phase == "save"), "what is known at once is tried again at once, what happens beside the steps with a later one"
    assert steps[-2:] == [4, 6] and all(not manifest.problems(tmp_path / "run/checkpoints" / str(n)) for n in steps)
    require_the_same_run(tmp_path / "run", whole)


def test_the_last_save_is_tried_once_more_too(resolve, whole, tmp_path, monkeypatch):
    monkeypatch.setenv(fault.VARIABLE, f"full@phase:publish,step:6,once:{tmp_path / 'once'}")
    assert pretrain.pretrain(resolve(), str(tmp_path / "run"), {}).finished
    require_the_same_run(tmp_path / "run", whole)


def every_save_from_4_on(phase):
    return ";".join(f"full@phase:{phase},step:{step}" for step in (4, 5, 6))


@pytest.mark.parametrize("phase", ["save", "publish", "rename"])
def test_a_disk_that_stays_full_ends_the_run(resolve, whole, tmp_path, monkeypatch, phase):
    """The older step is whole, and goes on to the same end when there is room."""
    monkeypatch.setenv(fault.VARIABLE, every_save_from_4_on(phase))
    with pytest.raises(
        TemporaryFailure, match=r"no room to write: .*; \d+ bytes at least are needed, \d+ are free.*checkpoints/[456]\.saving"
    ):
        pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    assert checkpoint.whole_steps(tmp_path / "run" / "checkpoints") == [2]
    assert not list((tmp_path / "run" / "checkpoints").glob("*saving*"))
    monkeypatch.delenv(fault.VARIABLE)
    pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    require_the_same_run(tmp_path / "run", whole)


def test_a_full_disk_before_the_first_token(resolve, whole, tmp_path, monkeypatch):
    monkeypatch.setenv(fault.VARIABLE, "full@phase:prepare")
    own = {"data__directory": str(tmp_path / "tokens")}
    with pytest.raises(TemporaryFailure, match=rf"no room to write: .*\({tmp_path / 'tokens'}\)"):
        pretrain.pretrain(resolve(**own), str(tmp_path / "run"), {})
    monkeypatch.delenv(fault.VARIABLE)
    pretrain.pretrain(resolve(**own), str(tmp_path / "run"), {})
    require_the_same_run(tmp_path / "run", whole)


def test_a_full_disk_under_a_line_of_metrics(resolve, whole, tmp_path, monkeypatch):
    """Half of the line of step 5 is written when the room ends."""
    with monkeypatch.context() as patch:
        original = os.write

        def write(file, content):
            if b'"step": 5' in bytes(content):
                original(file, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(file, content)

        patch.setattr(files.os, "write", write)
        with pytest.raises(TemporaryFailure, match=r"no room to write: .*; \d+ bytes at least are needed.*metrics\.jsonl"):
            pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    assert 2 in checkpoint.whole_steps(tmp_path / "run" / "checkpoints")
    pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    require_the_same_run(tmp_path / "run", whole)


def test_what_is_not_for_want_of_room_is_not_tried_again(resolve, tmp_path, monkeypatch):
    tried, original = [], files.write_synced

    def write(path, content):
        if path.name == "meta.json":
            tried.append(path.parent.name)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        original(path, content)

    monkeypatch.setattr(files, "write_synced", write)
    with pytest.raises(CannotWrite, match="cannot write: Permission denied"):
        pretrain.pretrain(resolve(train__num_steps="3"), str(tmp_path / "run"), {})
    assert tried == ["2.saving"]


def test_a_failure_is_known_until_a_save_succeeds(tmp_path, monkeypatch):
    import numpy as np

    checkpoints = checkpoint.Checkpoints(tmp_path, keep_last=9)
    save = lambda step: checkpoints.save(step, {"a": np.ones(3)}, {"b": np.ones(3)}, {})  # noqa: E731
    monkeypatch.setenv(fault.VARIABLE, "full@step:1;full@step:2;full@step:3")
    save(1)
    assert checkpoints.failed, "at once, as the fault is in the main thread"
    assert checkpoints.settle() is checkpoints.settle() is not None and not checkpoints.failed
    with pytest.raises(TemporaryFailure, match=r"2\.saving"):
        save(2)
    save(4)
    assert checkpoints.steps() == [4], "a second try is waited for"
    checkpoints.wait()
    save(3)
    with pytest.raises(TemporaryFailure, match=r"3\.saving"):
        checkpoints.wait()


def test_the_best_are_kept_by_their_whole_heldout_loss(resolve, whole, tmp_path):
    """Steps that were saved when they had just been evaluated know their loss, and the end does not."""
    losses = {step: checkpoint.meta(whole / "checkpoints" / str(step)).get("heldout_loss") for step in (2, 4, 6)}
    told = {line["step"]: line["heldout_loss"] for line in pretrain_metrics(whole) if "heldout_loss" in line}
    assert losses == {2: told[2], 4: told[4], 6: None}
    best = min((2, 4), key=losses.get)
    keep = {"checkpoint__keep_last": "1", "checkpoint__every_steps": "1"}
    pretrain.pretrain(resolve(checkpoint__keep_best="1", **keep), str(tmp_path / "best"), {})
    assert checkpoint.whole_steps(tmp_path / "best" / "checkpoints") == [best, 6]
    pretrain.pretrain(resolve(checkpoint__keep_every_steps="3", **keep), str(tmp_path / "every"), {})
    assert checkpoint.whole_steps(tmp_path / "every" / "checkpoints") == [3, 6]


def pretrain_metrics(workdir):
    from mtnlg.run import metrics

    return metrics.read(workdir / "metrics.jsonl")
