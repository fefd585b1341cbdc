"""Whole runs in a folder: resuming is the same run, one compile for a ramp, signals, weights-only starts, nothing saved is lost."""

import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint, lm
from mtnlg.core import files, manifest, schema
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, NumericalError, TemporaryFailure
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import run as pretrain
from mtnlg.pretrain.examiner import Examiner
from mtnlg.pretrain.telling import Telling
from mtnlg.run import metrics
from mtnlg.train import state as states


@pytest.fixture(scope="module")
def whole(resolve, tmp_path_factory):
    """A run of six steps without a stop."""
    workdir = tmp_path_factory.mktemp("whole")
    pretrain.pretrain(resolve(), str(workdir), {})
    return workdir


def test_three_steps_and_three_more_are_six_bit_for_bit(whole, resolve, tmp_path, monkeypatch, capfd):
    """The first start is stopped by SIGTERM after three steps; the second finds its own way."""
    seen = []
    original = Telling.report

    def stop_at_three(self, report, stands_out):
        original(self, report, stands_out)
        seen.append(report.position.step)
        if report.position.step == 2:  # read one step late: the third step is already on its way
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Telling, "report", stop_at_three)
    stopped = pretrain.pretrain(resolve(), str(tmp_path), {})
    assert (stopped.finished, stopped.position.step) == (False, 3)
    assert capfd.readouterr().err.count(f"mtnlg: SIGTERM: {pretrain.STOPS}; a second signal ends it at once") == 1
    finished = pretrain.pretrain(resolve(), str(tmp_path), {})
    assert finished.finished
    assert seen == [1, 2, 3, 4, 5, 6]
    require_same(arrays(tmp_path, 6), arrays(whole, 6))
    assert losses(tmp_path) == losses(whole)


def test_metrics_beyond_the_checkpoint_are_cut(whole, resolve, tmp_path):
    """A run killed after step 5 goes on from step 3: its own steps 4 and 5 are written once more, not twice."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    assert losses(tmp_path / "run") == losses(whole)
    require_same(arrays(tmp_path / "run", 6), arrays(whole, 6))


def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_taken(whole, resolve, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    victim = max((tmp_path / "run" / "checkpoints" / "6" / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    assert "6 is damaged (params" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "6.corrupt").is_dir()
    require_same(arrays(tmp_path / "run", 6), arrays(whole, 6))


def test_every_checkpoint_damaged_is_an_error_not_a_fresh_start(whole, resolve, tmp_path):
    """At the second start too: nothing is moved away that would make the folder look new."""
    shutil.copytree(whole, tmp_path / "run")
    for step in ("3", "6"):
        (tmp_path / "run" / "checkpoints" / step / "meta.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(DataError, match="every checkpoint is damaged"):
            pretrain.pretrain(resolve(), str(tmp_path / "run"), {})
    assert losses(tmp_path / "run") == losses(whole)


def test_another_tokenizer_is_refused_and_the_run_keeps_its_own(whole, resolve, tmp_path, source):
    shutil.copytree(whole, tmp_path / "run")
    own = (tmp_path / "run" / "tokenizer" / "tokenizer.model").read_bytes()
    config = resolve(model__vocab_size="290", data__directory=str(tmp_path / "other"))
    with pytest.raises(DataError, match="another tokenizer"):
        pretrain.pretrain(config, str(tmp_path / "run"), {})
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.model").read_bytes() == own


def test_stopped_at_a_step_that_is_being_saved_saves_it_once(resolve, tmp_path, monkeypatch):
    saved, original = [], checkpoint.Checkpoints.save

    def save(self, step, *rest):
        saved.append(step)
        original(self, step, *rest)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    pretrain.pretrain(resolve(), str(tmp_path), {})
    assert saved == [3]


def test_a_signal_before_the_first_step_saves_too(resolve, tmp_path, monkeypatch, capfd):
    original = pretrain.steps.make
    monkeypatch.setattr(pretrain.steps, "make", lambda *arguments: [original(*arguments), signal.raise_signal(signal.SIGINT)][0])
    assert pretrain.pretrain(resolve(), str(tmp_path), {}).position.step == 0
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == [0]
    assert f"mtnlg: SIGINT: {pretrain.STOPS}" in capfd.readouterr().err


def test_a_signal_during_the_final_evaluation_lets_it_end(resolve, tmp_path, monkeypatch, capfd):
    original = Examiner.evaluate
    monkeypatch.setattr(Examiner, "evaluate", lambda *arguments: [signal.raise_signal(signal.SIGTERM), original(*arguments)][1])
    result = pretrain.pretrain(resolve(), str(tmp_path), {})
    assert result.finished and result.heldout
    assert f"mtnlg: SIGTERM: {pretrain.ENDS}" in capfd.readouterr().err


def test_what_an_interrupted_save_or_deletion_left_is_cleared(resolve, tmp_path):
    for name in ("3.saving", "3.saving.orbax-checkpoint-tmp", "2.deleting"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    pretrain.pretrain(resolve(checkpoint__keep_last="1"), str(tmp_path), {})
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["6"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(13, "Permission denied"), CannotWrite),
        (TypeError("not JSON serializable"), TypeError),
        (ValueError("RESOURCE_EXHAUSTED: writing 5 bytes"), TemporaryFailure),
    ],
)
def test_only_a_full_disk_is_temporary(error, kind, tmp_path):
    with pytest.raises(kind), files.writing_by_library(tmp_path, 24):
        raise error


def test_another_model_in_the_same_folder_names_keys_and_leaves(whole, resolve, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    allowed = {"resume__allow": "model.norm,train.batch_size"}
    with pytest.raises(DataError) as error:
        pretrain.pretrain(resolve(model__d_ff="32", model__norm="rmsnorm", train__batch_size="2", **allowed), str(tmp_path / "run"), {})
    _, *keys, leaf = str(error.value).splitlines()[:4]
    assert keys == ["  - model.d_ff: stored None, here 32", "  - model.norm: stored layernorm, here rmsnorm"]
    assert leaf.startswith("  - blocks/") and "mlp/up/kernel: stored (1, 16, 64) float32, wanted (1, 16, 32)" in str(error.value)
    assert str(error.value).endswith("Try: --config.model.d_ff=None --config.model.norm=layernorm")
    assert (tmp_path / "run" / "config.json").read_bytes() == (whole / "config.json").read_bytes(), "a refused start leaves no trace"
    assert not (tmp_path / "run" / "config.1.json").exists()


def test_weights_of_another_model_name_its_keys(whole, resolve, tmp_path):
    with pytest.raises(DataError, match=r"  - model.d_ff: stored None, here 32\n(.|\n)*Try: --config.model.d_ff=None$"):
        pretrain.pretrain(resolve(model__d_ff="32", init__from=str(whole)), str(tmp_path), {})


def test_weights_only_start_has_a_fresh_optimizer_and_step_zero(whole, resolve, tmp_path):
    config = resolve(init__from=str(whole), train__num_steps="0")
    result = pretrain.pretrain(config, str(tmp_path), {})
    assert result.position.step == 0
    mine, theirs = arrays(tmp_path, 0), arrays(whole, 6)
    require_same(*({n: a for n, a in side.items() if n.startswith("params/")} for side in (mine, theirs)))
    assert all(not leaf.any() for name, leaf in mine.items() if "/mu/" in name)


def test_one_compile_for_the_whole_ramp_and_accumulation_counts(resolve, tmp_path):
    ramp = {"train__microbatch_size": "2", "train__ramp_start_size": "2", "train__ramp_increment": "2", "train__ramp_samples": "6"}
    config = resolve(**ramp)
    compiled = []
    original = pretrain.steps.make

    def counting(*arguments):
        compiled.append(original(*arguments))
        return compiled[-1]

    pretrain.steps.make = counting
    try:
        result = pretrain.pretrain(config, str(tmp_path), {})
    finally:
        pretrain.steps.make = original
    assert [program._cache_size() for program in compiled] == [1]
    assert result.position.samples == 2 + 2 + 2 + 3 * 4


def test_a_full_disk_leaves_the_older_checkpoint(resolve, tmp_path, monkeypatch):
    """The manifest of the second checkpoint meets a full disk."""
    original = files.write_synced

    def write(path, text):
        if path.parent.name == "6.saving":
            raise OSError(28, "No space left on device")
        original(path, text)

    monkeypatch.setattr(files, "write_synced", write)
    with pytest.raises(TemporaryFailure, match=r"no room to write.*\d+ bytes at least are needed.*6\.saving"):
        pretrain.pretrain(resolve(), str(tmp_path), {})
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == [3]
    assert manifest.problems(tmp_path / "checkpoints" / "3") == []


def test_a_second_writer_is_refused(resolve, tmp_path):
    script = f"""
import fcntl, sys
file = open({str(tmp_path / "lock")!r}, "w")
print("77@there", file=file, flush=True)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CannotWrite, match="77@there"):
            pretrain.pretrain(resolve(), str(tmp_path), {})
    finally:
        holder.communicate("")


def test_a_loss_that_is_not_finite_stops_the_run(resolve, tmp_path):
    with pytest.raises(NumericalError, match=r"the held-out loss is no number either \(step 6\)"):
        pretrain.pretrain(resolve(optimizer__learning_rate="1e30"), str(tmp_path), {})
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == []


def test_weights_that_are_not_finite_are_never_saved(resolve, tmp_path):
    """A checkpoint is due at the very step whose loss is lost, before that loss is read."""
    with pytest.raises(NumericalError):
        pretrain.pretrain(resolve(optimizer__learning_rate="1e30", checkpoint__every_steps="2"), str(tmp_path), {})
    for step in checkpoint.whole_steps(tmp_path / "checkpoints"):
        assert all(np.isfinite(leaf).all() for leaf in arrays(tmp_path, step).values())
    assert not list((tmp_path / "checkpoints").glob("*saving*"))


def test_weights_and_order_come_from_the_seed(whole, resolve, tmp_path):
    pretrain.pretrain(resolve(train__num_steps="1"), str(tmp_path / "same"), {})
    pretrain.pretrain(resolve(train__num_steps="1", seed="4321"), str(tmp_path / "other"), {})
    assert losses(tmp_path / "same")[0][1] == losses(whole)[0][1]
    assert losses(tmp_path / "other")[0][1] != losses(whole)[0][1]


def test_bf16_trains(resolve, tmp_path):
    result = pretrain.pretrain(resolve(train__compute_dtype="bfloat16"), str(tmp_path), {})
    assert result.finished
    assert all(leaf.dtype == np.float32 for name, leaf in arrays(tmp_path, 6).items() if name.startswith("params/"))
    assert jax.devices()[0].platform == "cpu"


# Meshes

MESHES = {
    "tensor": {"mesh__tensor": 2, "mesh__sequence_parallel": "true"},
    "shards": {"mesh__data": 4, "mesh__zero": 3},
    "all": {"mesh__replica": 2, "mesh__data": 2, "mesh__tensor": 2, "mesh__zero": 2, "train__microbatch_size": 1},
}


@pytest.fixture(scope="module")
def on_the_mesh(resolve, tmp_path_factory):
    """A run of six steps on every axis at once, in another order of sums than `whole`."""
    workdir = tmp_path_factory.mktemp("mesh")
    pretrain.pretrain(resolve(**MESHES["all"]), str(workdir), {})
    return workdir


def test_a_run_on_a_mesh_reads_and_learns_the_same(whole, on_the_mesh):
    """The same samples in the same order: float noise is all that differs, and in the end the held-out loss is the same."""
    np.testing.assert_allclose(losses(on_the_mesh), losses(whole), rtol=1e-5)
    heldout = [
        [line["heldout_loss"] for line in metrics.read(f"{run}/metrics.jsonl") if "heldout_loss" in line] for run in (whole, on_the_mesh)
    ]
    np.testing.assert_allclose(*heldout, rtol=1e-5)


@pytest.mark.parametrize("other", ["tensor", "shards"])
def test_a_checkpoint_goes_on_on_another_mesh(resolve, on_the_mesh, whole, tmp_path, other):
    """Stopped on one mesh, resumed on another: the restored state is bit for bit what was stored, and the samples are the same."""
    workdir = shutil.copytree(on_the_mesh, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "6")
    config = resolve(**MESHES[other])
    mesh = meshes.make(config.mesh)
    state = states.abstract_canonical(config, mesh)
    step_dir = workdir / "checkpoints" / "3"
    restored = {part: checkpoint.load(step_dir, part, getattr(state, part), config) for part in state._fields}
    require_same({name: np.asarray(leaf) for name, leaf in checkpoint.by_path(restored).items()}, arrays(workdir, 3))
    down = restored["params"]["blocks"]["mlp"]["down"]["kernel"]
    assert down.addressable_shards[0].data.size * (2 if other == "tensor" else 4) == down.size
    pretrain.pretrain(config, str(workdir), {})
    np.testing.assert_allclose(losses(workdir), losses(whole), rtol=1e-5)


def test_a_model_is_talked_to_on_any_mesh(on_the_mesh):
    """One device is enough for what was trained on eight, and four say the same."""
    alone, spread = lm.from_pretrained(on_the_mesh), lm.from_pretrained(on_the_mesh, schema.Mesh(data=2, tensor=2))
    assert alone.engine.mesh.size == 1 and spread.engine.mesh.size == 4
    texts = [model.complete("the quick", max_new_tokens=6, temperature=0) for model in (alone, spread)]
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize(
    ("tensor", "line"),
    [(4, "model.num_heads=2 does not divide by mesh.tensor=4: take mesh.tensor=2"), (0, "mesh.tensor=0 must be at least 1")],
)
def test_a_mesh_that_does_not_fit_the_model_is_refused(on_the_mesh, tensor, line):
    with pytest.raises(ConfigError, match=line):
        lm.from_pretrained(on_the_mesh, schema.Mesh(tensor=tensor))
