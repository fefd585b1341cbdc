"""Whole runs on pipeline stages: the same run as on one device, resumed anywhere, with one compiled step."""

import dataclasses
import shutil

import numpy as np
import pytest
from runs import arrays, losses, require_same

from mtnlg import lm
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import orders, schedule_file, stages, timetable
from mtnlg.pretrain import run as pretrain
from mtnlg.run import metrics

MODEL = {"model__num_layers": 3, "train__microbatch_size": 1}
VOCABULARY = {"model__vocab_multiple": 1, "model__vocab_size": 301}
# Four virtual stages for three layers, and a vocabulary that two devices cannot part: nothing lies on them as it is stored.
PIPE = VOCABULARY | {"mesh__pipe": 2, "mesh__data": 2, "pipeline__schedule": "zb_v", "train__recompute": "full"}


@pytest.fixture(scope="module")
def on_one_device(resolve, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    pretrain.pretrain(resolve(**MODEL, **VOCABULARY), str(workdir), {})
    return workdir


@pytest.fixture(scope="module")
def piped(resolve, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("piped")
    pretrain.pretrain(resolve(**MODEL, **PIPE), str(workdir), {})
    return workdir


def heldout(workdir):
    return [line["heldout_loss"] for line in metrics.read(f"{workdir}/metrics.jsonl") if "heldout_loss" in line]


def stopped_at_3(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "6")
    return copy


def test_a_run_on_stages_reads_and_learns_the_same(on_one_device, piped):
    np.testing.assert_allclose(losses(piped), losses(on_one_device), rtol=1e-5)
    np.testing.assert_allclose(heldout(piped), heldout(on_one_device), rtol=1e-5)
    assert len(heldout(piped)) == 1


def test_checkpoints_have_the_models_own_order(on_one_device, piped):
    """Shapes are those of one device, and every layer lies where it lies there."""
    mine, theirs = arrays(piped, 6), arrays(on_one_device, 6)
    assert {name: leaf.shape for name, leaf in mine.items()} == {name: leaf.shape for name, leaf in theirs.items()}
    for name, leaf in theirs.items():
        np.testing.assert_allclose(mine[name], leaf, rtol=1e-3, atol=1e-3 * max(np.abs(leaf).max(), 1e-9), err_msg=name)
    up = mine["params/blocks/mlp/up/kernel"]
    assert np.abs(up[0] - up[1]).max() > 0.01, "the layers are alike, so that their order would not show"


def test_three_steps_and_three_more_are_six_bit_for_bit(resolve, piped, tmp_path):
    workdir = stopped_at_3(piped, tmp_path)
    pretrain.pretrain(resolve(**MODEL, **PIPE), str(workdir), {})
    require_same(arrays(workdir, 6), arrays(piped, 6))


@pytest.mark.parametrize("mesh", [{}, {"mesh__pipe": 4, "mesh__replica": 2, "pipeline__schedule": "zero_bubble"}], ids=["alone", "stages"])
def test_a_checkpoint_goes_on_on_another_mesh(resolve, piped, tmp_path, mesh):
    workdir = stopped_at_3(piped, tmp_path)
    pretrain.pretrain(resolve(**MODEL, **VOCABULARY, **mesh), str(workdir), {})
    np.testing.assert_allclose(losses(workdir), losses(piped), rtol=1e-5)


def test_one_compile_for_the_whole_ramp(resolve, tmp_path, monkeypatch):
    ramp = {"train__ramp_start_size": 1, "train__ramp_increment": 1, "train__ramp_samples": 6}
    made, original = [], pretrain.steps.make
    monkeypatch.setattr(pretrain.steps, "make", lambda *arguments: made.append(original(*arguments)) or made[-1])
    config = resolve(**MODEL, **VOCABULARY, **ramp, mesh__pipe=2)
    result = pretrain.pretrain(config, str(tmp_path / "piped"), {})
    assert [program._cache_size() for program in made] == [1]
    alone = dataclasses.replace(config, mesh=schema.Mesh())
    assert pretrain.pretrain(alone, str(tmp_path / "alone"), {}).position == result.position
    np.testing.assert_allclose(losses(tmp_path / "piped"), losses(tmp_path / "alone"), rtol=1e-5)


def test_text_is_generated_without_stages(piped):
    assert lm.from_pretrained(piped).complete("the quick", max_new_tokens=4, temperature=0) != ""
    with pytest.raises(ConfigError, match="mesh.pipe=2: text is generated without pipeline stages.*mtnlg generate --workdir=RUN"):
        lm.from_pretrained(piped, schema.Mesh(pipe=2))


def test_a_batch_without_a_timetable_is_refused_before_anything_is_read(resolve, tmp_path):
    config = resolve(**MODEL, mesh__pipe=2)
    odd = dataclasses.replace(config, pipeline=schema.Pipeline(layers_per_stage=(1, 1)))
    with pytest.raises(
        ConfigError, match=r"pipeline.layers_per_stage=1,1 is not 2 numbers .* add up to model.num_layers=3.*layers_per_stage=\d,\d"
    ):
        pretrain.pretrain(odd, str(tmp_path), {})
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_ones_own_is_kept_and_its_change_told(resolve, tmp_path, capsys):
    table = tmp_path / "mine.csv"
    schedule_file.write_csv(orders.one_f_one_b(2, 4), table)
    changes = {"mesh__pipe": 2, "pipeline__schedule": str(table), "train__num_steps": 1}
    pretrain.pretrain(resolve(**MODEL, **VOCABULARY, **changes), str(tmp_path / "run"), {})
    kept = tmp_path / "run" / "schedule.csv"
    assert kept.read_text() == table.read_text() and "has changed" not in capsys.readouterr().out
    schedule_file.write_csv(orders.gpipe(2, 4), table)
    for read_once in (timetable.sizes, timetable.on_mesh, stages.of):
        read_once.cache_clear()  # another process
    pretrain.pretrain(resolve(**MODEL, **VOCABULARY, **changes), str(tmp_path / "run"), {})
    assert kept.read_text() == table.read_text() and f"{table} has changed since the last start" in capsys.readouterr().out
