"""Two hundred ways to damage a checkpoint: each is found, the file is named, and the step before is taken."""

import shutil
from collections import Counter

import pytest

from benchmarks.soak_train import mutations
from mtnlg import checkpoint
from mtnlg.core import manifest
from mtnlg.pretrain import run as pretrain

NUM_MUTATIONS = 200


@pytest.fixture(scope="module")
def directory(resolve, tmp_path_factory):
    """The checkpoints of steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("run")
    pretrain.pretrain(resolve(), str(workdir), {})
    return workdir / "checkpoints"


def test_every_damage_is_found_and_named_and_the_older_step_taken(directory):
    outcomes = list(mutations.outcomes(directory, NUM_MUTATIONS, seed=1))
    assert [outcome for outcome in outcomes if not outcome.is_found] == []
    assert Counter(outcome.kind for outcome in outcomes).keys() == set(mutations.KINDS)
    files = {str(path.relative_to(directory / "6")) for path in (directory / "6").rglob("*") if path.is_file()}
    assert {outcome.file for outcome in outcomes} == files
    assert checkpoint.newest_good([directory]) == directory / "6", "all was undone"


def test_without_the_hashes_damage_is_not_found(directory, tmp_path, monkeypatch):
    """The negative control: names and sizes alone do not see it."""
    directory = shutil.copytree(directory, tmp_path / "checkpoints")
    monkeypatch.setattr(manifest, "_sha256", lambda path: "")
    monkeypatch.setattr(manifest, "_seal", lambda rows: "")
    for step in ("3", "6"):
        (directory / step / manifest.NAME).write_text(manifest.content(directory / step))
    outcomes = list(mutations.outcomes(directory, NUM_MUTATIONS, seed=1))
    missed = {outcome.kind for outcome in outcomes if not outcome.is_found}
    assert {"a bit flipped", "two bytes exchanged", "a page of zeros"} <= missed
    assert not missed & {"deleted", "an extra file"}
