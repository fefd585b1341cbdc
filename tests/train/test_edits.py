"""A run whose weights change on the way: recorded in its checkpoints, resumed bit for bit, the same on another mesh."""

import contextlib
import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.corpus import manifest
from mtnlg.data.loader import Loader
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import run as pretrain
from mtnlg.pretrain.feed import Feed
from mtnlg.run import metrics

BEFORE, AFTER = (0.75, 0.25), (0.25, 0.75)
BLEND = [{"sample": 0, "weights": {"a": 0.75, "b": 0.25}}, {"sample": 12, "weights": {"a": 0.25, "b": 0.75}}]


@pytest.fixture(scope="module")
def resolve(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    for name, words in (("a", "the quick brown fox"), ("b", "seven wizards with quartz")):
        texts = [" ".join(words.split()[(i * n) % 4] for i in range(40)) for n in range(1, 20)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    sources = ",".join(str(folder / f"{name}.jsonl") for name in "ab")
    given = {"data__source": sources, "data__directory": str(folder / "tokens"), "checkpoint__every_steps": "1"}
    return lambda weights, **changes: tiny(**given | {"data__weights": ",".join(map(str, weights))} | changes)


@pytest.fixture(scope="module")
def plain(resolve, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("plain")
    pretrain.pretrain(resolve(BEFORE), str(workdir), {})
    return workdir


@pytest.fixture(scope="module")
def going_on(plain, resolve, tmp_path_factory):
    """(folder, standard output, [(blend, sample numbers)] that were read) of the run, gone on from 12 samples with other weights."""
    workdir = cut(plain, tmp_path_factory.mktemp("edited") / "run", 3)
    seen, original, printed = [], Loader.batch, io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(Loader, "batch", lambda self, numbers: seen.append((self._blend, numbers)) or original(self, numbers))
        pretrain.pretrain(resolve(AFTER), str(workdir), {})
    return workdir, printed.getvalue(), seen


@pytest.fixture(scope="module")
def edited(going_on):
    return going_on[0]


def cut(run, to, last_step):
    """A copy of a run as if it had been killed after that checkpoint."""
    shutil.copytree(run, to)
    for step in checkpoint.whole_steps(to / "checkpoints"):
        if step > last_step:
            shutil.rmtree(to / "checkpoints" / str(step))
    return to


def blend_of(run, step):
    return checkpoint.meta(run / "checkpoints" / str(step))["blend"]


def test_every_checkpoint_knows_the_edits_so_far(plain, edited):
    assert [blend_of(edited, step) for step in range(1, 7)] == [BLEND[:1]] * 3 + [BLEND] * 3
    assert blend_of(plain, 6) == BLEND[:1]
    assert losses(edited)[:3] == losses(plain)[:3] and losses(edited)[3:] != losses(plain)[3:]


def test_resumed_behind_the_edit_it_is_the_same_run(edited, resolve, tmp_path):
    pretrain.pretrain(resolve(AFTER), str(cut(edited, tmp_path / "run", 4)), {})
    assert losses(tmp_path / "run") == losses(edited)
    require_same(arrays(tmp_path / "run", 6), arrays(edited, 6))
    assert blend_of(tmp_path / "run", 6) == BLEND


def test_on_another_mesh_the_samples_are_the_same(plain, edited, resolve, tmp_path):
    pretrain.pretrain(resolve(AFTER, mesh__data="2"), str(cut(plain, tmp_path / "run", 3)), {})
    assert blend_of(tmp_path / "run", 6) == BLEND
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(edited), rtol=1e-5)


def test_each_source_goes_on_where_it_was(going_on):
    _, _, seen = going_on
    numbers = np.concatenate([numbers for _, numbers in seen])[:12]
    source, index = seen[0][0].locate(numbers)
    assert numbers.tolist() == list(range(12, 24))
    assert [index[source == k].tolist() for k in range(2)] == [[9, 10, 11], list(range(3, 12))]


def test_epochs_are_told(edited, resolve):
    prepared = manifest.load(edited.parent / resolve(BEFORE).data.directory)
    (last,) = [line for line in metrics.read(edited / "metrics.jsonl") if "heldout_loss" in line]
    for source, drawn in zip(prepared.sources, (9 + 3, 3 + 9), strict=True):
        assert last[f"epochs/{source.name}"] == drawn * 16 / source.train.num_tokens


def test_the_edit_is_told_at_start_and_end(going_on):
    told = [line for line in going_on[1].splitlines() if line.startswith("epochs: ")]
    assert len(told) == 2 and all(line.endswith("; other weights from sample 12 on") for line in told)


def test_refused_before_anything_is_written(plain, resolve, tmp_path):
    run = cut(plain, tmp_path / "run", 3)
    before = (run / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="megatron cannot go on"):
        pretrain.pretrain(resolve(AFTER, data__order="megatron"), str(run), {})
    sources = ",".join(reversed(resolve(AFTER).data.source))
    with pytest.raises(DataError, match="drawn from a, b, the config names b, a"):
        pretrain.pretrain(resolve(AFTER, data__source=sources, data__directory=str(tmp_path / "tokens")), str(run), {})
    assert (run / "config.json").read_bytes() == before


def test_a_checkpoint_from_before_edits_were_kept_has_its_weights_in_its_config(plain, resolve):
    """Then other weights are an edit there too, and Megatron's order is refused one."""
    meta = {key: value for key, value in checkpoint.meta(plain / "checkpoints" / "3").items() if key != "blend"}
    prepared = pathlib.Path(resolve(BEFORE).data.directory)
    feed = Feed(resolve(AFTER), meshes.make(schema.Mesh()), prepared)
    feed.go_on(meta, "")
    assert [(edit.first, edit.weights) for edit in feed.blend.edits] == [(0, BEFORE), (12, AFTER)]
    feed = Feed(resolve(AFTER, data__order="megatron"), meshes.make(schema.Mesh()), prepared)
    with pytest.raises(ConfigError, match="changed at sample 12"):
        feed.go_on(meta, "")
