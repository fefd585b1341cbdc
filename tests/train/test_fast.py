"""More frequent checkpoints on a fast disk: the newest good one of both folders is taken, and the fast one belongs to one run."""

import shutil

import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint
from mtnlg.core.errors import ConfigError
from mtnlg.pretrain import fast
from mtnlg.pretrain import run as pretrain
from mtnlg.pretrain.telling import Telling


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(resolve, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    pretrain.pretrain(resolve(), str(workdir), {})
    return workdir


@pytest.fixture
def on_two_disks(resolve, tmp_path):
    """A function: the config with a fast folder, and changes."""
    given = {"checkpoint__fast_directory": str(tmp_path / "fast"), "checkpoint__fast_every_steps": "1"}
    return lambda **changes: resolve(**given | changes)


@pytest.fixture
def killed(on_two_disks, tmp_path, monkeypatch):
    """(workdir, fast folder) of a run that ended at once when step 4 was told of, while step 5 was being saved."""
    original = Telling.report

    def report(self, told, stands_out):
        original(self, told, stands_out)
        if told.position.step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Telling, "report", report)
        with pytest.raises(Killed):
            pretrain.pretrain(on_two_disks(), str(tmp_path / "run"), {})
    return tmp_path / "run", tmp_path / "fast"


def test_the_newest_of_both_is_taken(killed, on_two_disks, whole, capsys):
    workdir, folder = killed
    assert checkpoint.whole_steps(workdir / "checkpoints") == [3] and checkpoint.whole_steps(folder) == [4]
    pretrain.pretrain(on_two_disks(), str(workdir), {})
    assert "goes on at step 4" in capsys.readouterr().out
    require_same(arrays(workdir, 6), arrays(whole, 6))
    assert losses(workdir) == losses(whole)
    assert [path.name for path in folder.iterdir()] == [fast.TIE], "the end is saved in the run's folder, and overtakes all"


def test_a_damaged_one_is_set_aside_and_the_older_one_of_the_other_folder_taken(killed, on_two_disks, whole, capsys):
    workdir, folder = killed
    (folder / "4" / "meta.json").write_text("{}")
    pretrain.pretrain(on_two_disks(), str(workdir), {})
    told = capsys.readouterr().out
    assert "fast/4 is damaged (meta.json has changed): set aside as 4.corrupt" in told and "goes on at step 3" in told
    require_same(arrays(workdir, 6), arrays(whole, 6))
    assert (folder / "4.corrupt").is_dir()


def test_the_order_of_folders_and_steps(tmp_path):
    import numpy as np

    durable, quick = (checkpoint.Checkpoints(tmp_path / name, keep_last=9) for name in ("durable", "quick"))
    for checkpoints, steps in ((durable, (2, 4)), (quick, (3, 4, 5))):
        for step in steps:
            checkpoints.save(step, {"a": np.ones(3)}, {"b": np.ones(3)}, {})
        checkpoints.wait()
    folders = [durable.directory, quick.directory]
    for found in (folders[1] / "5", folders[0] / "4", folders[1] / "4", folders[1] / "3", folders[0] / "2"):
        assert checkpoint.newest_good(folders) == found
        (found / "meta.json").unlink()
    with pytest.raises(checkpoint.DataError, match="every checkpoint is damaged"):
        checkpoint.newest_good(folders)
    assert sorted(path.name for path in folders[0].iterdir()) == ["2", "4.corrupt"]
    assert checkpoint.newest_good([tmp_path / "nowhere"]) is None


def test_a_fast_disk_that_is_gone_costs_the_steps_since_the_last_durable_one(killed, on_two_disks, whole, capsys):
    workdir, folder = killed
    shutil.rmtree(folder)
    pretrain.pretrain(on_two_disks(), str(workdir), {})
    assert "goes on at step 3" in capsys.readouterr().out
    require_same(arrays(workdir, 6), arrays(whole, 6))


def test_another_runs_folder_is_refused(killed, on_two_disks, tmp_path):
    """Another workdir, the same one begun anew, and a folder of which nobody knows the run."""
    workdir, folder = killed
    with pytest.raises(ConfigError, match=f"checkpoints of another run are there: {workdir}"):
        pretrain.pretrain(on_two_disks(), str(tmp_path / "other"), {})
    shutil.copytree(workdir, tmp_path / "copy")
    with pytest.raises(ConfigError, match=f"checkpoints of another run are there: {workdir}"):
        pretrain.pretrain(on_two_disks(), str(tmp_path / "copy"), {})
    tie = (workdir / fast.TIE).read_text()
    shutil.rmtree(workdir)
    with pytest.raises(ConfigError, match=r"another run are there.*Try: --config\.checkpoint\.fast_directory=ANOTHER, or delete this one"):
        pretrain.pretrain(on_two_disks(), str(workdir), {})
    (folder / fast.TIE).unlink()
    (workdir / fast.TIE).write_text(tie)
    with pytest.raises(ConfigError, match="nobody knows whose"):
        pretrain.pretrain(on_two_disks(), str(workdir), {})
    assert checkpoint.whole_steps(folder) == [4]


def test_a_run_that_has_gone_on_without_it_does_not_come_back_to_it(killed, on_two_disks, resolve):
    """Step 4 there is of steps that were taken again since, perhaps with another config."""
    workdir, _ = killed
    pretrain.pretrain(resolve(train__num_steps="3"), str(workdir), {})
    with pytest.raises(ConfigError, match="checkpoints of another run are there"):
        pretrain.pretrain(on_two_disks(), str(workdir), {})
