"""A start that would not be the same run is refused before anything is compiled or changed; what may differ is accepted."""

import json
import pathlib
import shutil

import pytest
from runs import arrays, require_same

from mtnlg import checkpoint
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.pretrain import run as pretrain

REFUSED = {
    "optimizer.learning_rate": "0.02",
    "optimizer.min_lr_ratio": "0.2",
    "optimizer.schedule": "wsd",
    "optimizer.warmup_tokens": "64",
    "optimizer.decay_tokens": "640",
    "optimizer.wsd_decay_fraction": "0.1",
    "optimizer.beta1": "0.8",
    "optimizer.beta2": "0.99",
    "optimizer.eps": "0.001",
    "optimizer.weight_decay": "0.0",
    "optimizer.clip_norm": "2.0",
    "seed": "4321",
    "model.seq_len": "8",
    "model.position": "alibi",
    "model.rope_theta": "500.0",
    "model.rope_fraction": "0.5",
    "model.rope_scaling_factor": "4.0",
    "model.norm": "rmsnorm",
    "model.norm_eps": "1e-06",
    "model.activation": "relu",
    "model.parallel_residual": "True",
    "model.sliding_window": "4",
    "model.dropout_hidden": "0.1",
    "model.dropout_attention": "0.1",
    "train.batch_size": "2",
    "train.compute_dtype": "bfloat16",
    "train.reduce_dtype": "bfloat16",
    "data.order": "megatron",
    "data.reset_at_documents": "True",
}
SHAPES = {
    "model.num_layers": "2",
    "model.d_model": "32",
    "model.num_heads": "4",
    "model.num_kv_heads": "1",
    "model.d_ff": "32",
    "model.vocab_multiple": "256",
    "model.bias_mlp": "False",
    "model.qk_norm": "True",
    "model.tie_embeddings": "False",
}
ACCEPTED = {
    "nothing": {},
    "another mesh": {"mesh.data": "2", "mesh.tensor": "2", "mesh.zero": "2"},
    "stages": {"mesh.pipe": "2", "train.microbatch_size": "2", "pipeline.schedule": "gpipe"},
    "microbatches": {"train.microbatch_size": "1"},
    "memory": {"train.recompute": "full", "train.loss_chunk_tokens": "8"},
    "unrolled": {"train.unroll_layers": "true"},
    "longer": {"train.num_steps": "9"},
    "saved and told otherwise": {"checkpoint.every_steps": "1", "log.every_steps": "2", "eval.every_steps": "2"},
    "another name": {"name": "other", "guard.max_grad_norm": "100.0", "model.init_std": "0.5"},
    "the same by another word": {"model.d_ff": "64", "model.num_kv_heads": "2"},
    "allowed": {"resume.allow": "optimizer.beta2,seed", "optimizer.beta2": "0.99", "seed": "1"},
    "a group allowed": {"resume.allow": "optimizer", "optimizer.beta2": "0.99", "optimizer.eps": "0.1"},
}


class Compiling(Exception):
    """The step is about to be made: the start was accepted."""


@pytest.fixture(scope="module")
def saved(resolve, tmp_path_factory):
    """A run's folder with a checkpoint of step 1."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    pretrain.pretrain(resolve(train__num_steps="1"), str(workdir), {})
    return workdir


@pytest.fixture
def no_step(monkeypatch):
    def make(*_):
        raise Compiling

    monkeypatch.setattr(pretrain.steps, "make", make)


def changed(values):
    return {key.replace(".", "__"): value for key, value in values.items()}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize(("key", "value"), [*REFUSED.items(), *SHAPES.items()])
def test_refused_before_any_compile(saved, resolve, no_step, key, value):
    before = contents(saved)
    with pytest.raises(ConfigError if key in REFUSED else DataError) as error:
        pretrain.pretrain(resolve(train__num_steps="1", **changed({key: value})), str(saved), {})
    stored = checkpoint.configs.flatten(checkpoint.meta(saved / "checkpoints" / "1")["config"])[key]
    said = f"{key}: {stored} in the checkpoint, {value} here" if key in REFUSED else f"{key}: stored {stored}, here {value}"
    assert f"\n  - {said}\n" in str(error.value) and str(saved / "checkpoints" / "1") in str(error.value)
    assert contents(saved) == before


def test_a_ramp_is_refused_with_every_key(saved, resolve, no_step):
    ramp = {"train__microbatch_size": "2", "train__ramp_start_size": "2", "train__ramp_increment": "2", "train__ramp_samples": "6"}
    with pytest.raises(ConfigError) as error:
        pretrain.pretrain(resolve(train__num_steps="1", **ramp), str(saved), {})
    allow = "train.ramp_start_size,train.ramp_increment,train.ramp_samples"
    assert len(str(error.value).splitlines()) == 5 and str(error.value).endswith(f"--config.resume.allow={allow}")


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(saved, resolve, no_step, tmp_path, changes):
    shutil.copytree(saved, tmp_path / "run")
    with pytest.raises(Compiling):
        pretrain.pretrain(resolve(**changed({"train.num_steps": "1"} | changes)), str(tmp_path / "run"), {})


def test_what_is_allowed_trains_on_and_is_recorded(saved, resolve, tmp_path, capsys):
    """Once: the next checkpoint has the new value."""
    workdir = shutil.copytree(saved, tmp_path / "run")
    new = {"train__num_steps": "2", "optimizer__beta2": "0.5", "resume__allow": "optimizer.beta2"}
    pretrain.pretrain(resolve(**new), str(workdir), {})
    told = capsys.readouterr().out
    assert "optimizer.beta2" in told and "train.num_steps was 1 and is 2: the learning rate" in told
    assert json.loads((workdir / "config.json").read_text())["resume"]["allow"] == ["optimizer.beta2"]
    with pytest.raises(ConfigError, match=r"optimizer\.beta2: 0\.5 in the checkpoint, 0\.95 here"):
        pretrain.pretrain(resolve(train__num_steps="2"), str(workdir), {})


@pytest.fixture(scope="module")
def other_text(source, tmp_path_factory):
    """A source of the same name, one word of which is another."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "docs.jsonl").write_text((source / "docs.jsonl").read_text().replace("quick", "brown", 1))
    return folder / "docs.jsonl"


def test_other_tokens_are_refused_by_name(saved, resolve, other_text, no_step, tmp_path):
    """Swapped text, and the same text parted otherwise; with the run's own tokenizer, so that it is the tokens that differ."""
    given = {"train__num_steps": "1", "data__tokenizer": str(saved / "tokenizer")}
    stored = checkpoint.meta(saved / "checkpoints" / "1")["data"]["tokens"]["docs.bin"]
    for number, change in enumerate(({"data__source": str(other_text)}, {"data__heldout_fraction": "0.5"})):
        config = resolve(**given | change, data__directory=str(tmp_path / str(number)))
        with pytest.raises(DataError) as error:
            pretrain.pretrain(config, str(saved), {})
        assert f"  - docs.bin: {stored[:12]} in the checkpoint, " in str(error.value)
        assert str(error.value).endswith("--config.resume.allow=data")
    shutil.copytree(saved, tmp_path / "run")
    allowed = resolve(**given | change, data__directory=str(tmp_path / "1"), resume__allow="data")
    with pytest.raises(Compiling):
        pretrain.pretrain(allowed, str(tmp_path / "run"), {})


def test_the_same_tokens_elsewhere_are_accepted(saved, resolve, source, no_step, tmp_path):
    """A corpus that has moved, prepared anew."""
    shutil.copytree(saved, tmp_path / "run")
    shutil.copytree(source, tmp_path / "text")
    moved = {"data__source": str(tmp_path / "text" / "docs.jsonl"), "data__directory": str(tmp_path / "tokens")}
    with pytest.raises(Compiling):
        pretrain.pretrain(resolve(train__num_steps="1", **moved), str(tmp_path / "run"), {})


def test_weights_of_another_network_do_not_start_a_run(saved, resolve, no_step, tmp_path):
    """The arrays would fit."""
    with pytest.raises(ConfigError, match=r"model\.activation: gelu in the checkpoint, relu here"):
        pretrain.pretrain(resolve(model__activation="relu", init__from=str(saved)), str(tmp_path / "a"), {})
    with pytest.raises(Compiling):
        pretrain.pretrain(resolve(seed="1", model__dropout_hidden="0.1", init__from=str(saved)), str(tmp_path / "b"), {})


def rewrite(step_dir: pathlib.Path, **fields):
    """Another meta, with the manifest that goes with it."""
    meta = checkpoint.meta(step_dir) | fields
    (step_dir / "meta.json").write_text(json.dumps(meta))
    (step_dir / checkpoint.manifest.NAME).write_text(checkpoint.manifest.content(step_dir))


def test_a_later_format_is_refused_with_its_writer(saved, resolve, no_step, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "run")
    rewrite(workdir / "checkpoints" / "1", format=checkpoint.FORMAT + 1, versions={"mtnlg": "9.9"})
    with pytest.raises(DataError, match=r"is of format 2, and this version reads 1 .* Try: mtnlg 9\.9"):
        pretrain.pretrain(resolve(train__num_steps="1"), str(workdir), {})


def test_other_versions_are_told(saved, resolve, no_step, tmp_path, capsys):
    workdir = shutil.copytree(saved, tmp_path / "run")
    stored = checkpoint.meta(workdir / "checkpoints" / "1")["versions"]
    rewrite(workdir / "checkpoints" / "1", versions=stored | {"jax": "0.1.2"})
    with pytest.raises(Compiling):
        pretrain.pretrain(resolve(train__num_steps="1"), str(workdir), {})
    assert f"its last bits may differ: jax 0.1.2 -> {stored['jax']}\n" in capsys.readouterr().out


def test_a_checkpoint_from_before_all_this_goes_on(saved, resolve, tmp_path):
    old, new = shutil.copytree(saved, tmp_path / "old"), shutil.copytree(saved, tmp_path / "new")
    step_dir = old / "checkpoints" / "1"
    meta = checkpoint.meta(step_dir)
    meta["config"].pop("resume")
    fields = {name: meta[name] for name in ("step", "samples", "tokens", "config", "tokenizer_sha256", "skipped", "blend")}
    (step_dir / "meta.json").write_text(json.dumps(fields))
    (step_dir / checkpoint.manifest.NAME).write_text(checkpoint.manifest.content(step_dir))
    for workdir in (old, new):
        pretrain.pretrain(resolve(train__num_steps="2"), str(workdir), {})
    require_same(arrays(old, 2), arrays(new, 2))


def test_the_table_is_long_enough():
    assert len(REFUSED) + len(SHAPES) >= 30 and len(ACCEPTED) >= 10
    assert (REFUSED | SHAPES).keys() <= schema.leaves().keys()
