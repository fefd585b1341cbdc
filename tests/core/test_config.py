"""Configs: what is written comes back, what is wrong is named."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.core import config as configs
from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError

LEAVES = schema.leaves()


def values_of(field):
    """Legal values of a key's type."""
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    base = configs._base_type(field.type)
    words = st.text(st.characters(categories=["L", "N"], include_characters="/._-"), min_size=1)
    by_type = {
        int: st.integers(-(10**12), 10**12),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        str: words,
    }
    if base is tuple:
        item = field.type.__args__[0]
        return st.lists(by_type[item], max_size=4).map(tuple)
    return by_type[base]


@given(st.data())
def test_any_values_survive_json(data):
    name = data.draw(st.sampled_from(sorted(LEAVES)))
    config = configs.from_flat({name: data.draw(values_of(LEAVES[name]))})
    assert configs.from_flat(configs.flatten(json.loads(json.dumps(configs.to_nested(config))))) == config


@given(st.data())
def test_any_value_survives_the_command_line(data):
    name = data.draw(st.sampled_from(sorted(LEAVES)))
    value = data.draw(values_of(LEAVES[name]))
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    if text.lower() != "none":
        assert configs.parse(name, text) == value


def test_defaults_of_the_config_file_are_those_of_the_schema():
    assert configs.from_flat(configs.flatten(configs.default().to_dict())) == schema.Config()


def test_a_resolved_config_is_a_static_value():
    assert hash(schema.Config()) == hash(configs.from_flat({}))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.Config().seed = 1


def test_every_key_is_explained():
    assert all(len(field.metadata["help"]) > 10 for field in LEAVES.values())
    assert "init.from" in LEAVES


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.num_steps", "1e3", 1000),
        ("model.num_kv_heads", "none", None),
        ("data.source", "('a','b')", ("a", "b")),
        ("data.source", "[]", ()),
        ("data.source", "(draft) notes.txt", ("(draft) notes.txt",)),
        ("data.source", "('python')", ("('python')",)),
        ("data.source", "[1],b.txt", ("[1]", "b.txt")),
        ("sample.prompts", "('Hello, world',)", ("Hello, world",)),
        ("data.weights", "0.25,0.75", (0.25, 0.75)),
        ("data.weights", "(1, 0.5)", (1.0, 0.5)),
        ("log.tensorboard", "False", False),
    ],
)
def test_spellings(name, text, value):
    assert configs.parse(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("train.num_steps", "1.5", "a whole number"),
        ("train.num_steps", "inf", "a whole number"),
        ("log.tensorboard", "maybe", "true or false"),
        ("data.weights", "a,b", "a list of numbers"),
        ("data.weights", "[True]", "a list of numbers"),
        ("data.weights", "[" * 300, "a list of numbers"),
        ("model.num_kv_heads", "few", "a whole number or none"),
    ],
)
def test_wrong_types_name_key_value_and_type(name, text, kind):
    with pytest.raises(ConfigError, match=re.escape(f"{name}='{text}' is not {kind} (")):
        configs.parse(name, text)


CONTRADICTIONS = {
    "model.num_heads": (3, "model.d_model=256 does not divide by model.num_heads=3: take model.num_heads=2"),
    "model.num_kv_heads": (3, "model.num_heads=4 does not divide by model.num_kv_heads=3"),
    "model.rope_scaling": ("linear", "needs model.position=rope"),
    "model.dropout_hidden": (1.0, "is not in"),
    "train.microbatch_size": (3, "train.batch_size=16 is no multiple"),
    "train.compute_dtype": ("float64", "needs train.param_dtype=float64"),
    "train.ramp_start_size": (32, "is above train.batch_size=16"),
    "optimizer.clip_norm": (0.0, "must be above 0"),
    "data.weights": ((1.0, 2.0), "2 numbers for 1 sources"),
    "data.heldout_fraction": (1.0, "not between 0 and 1"),
    "model.rope_fraction": (0.01, "rotates 1 of 64 dims"),
    "train.ramp_samples": (5, "train.ramp_samples=5 needs train.ramp_start_size"),
    "log.norms_every_steps": (7, "no multiple of log.every_steps"),
    "loss_scale.initial": (3.0, "loss_scale.initial=3.0 is no power of two"),
    "loss_scale.floor": (2.0**33, "loss_scale.floor=8589934592.0 is above loss_scale.initial="),
    "loss_scale.window": (10, "scales nothing without train.compute_dtype=float16"),
    "guard.replicas_every_steps": (-1, "must not be negative"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_each_contradiction_is_found(name):
    value, message = CONTRADICTIONS[name]
    values = {name: value} | ({"model.position": "rope"} if name == "model.rope_fraction" else {})
    assert any(message in line for line in validate.problems(configs.from_flat(values)))


MESHES = (
    ({"mesh.tensor": 3}, "model.num_heads=4 does not divide by mesh.tensor=3: take mesh.tensor=2"),
    (
        {"mesh.tensor": 8, "model.num_heads": 12, "model.d_model": 768},
        "model.num_heads=12 does not divide by mesh.tensor=8: take mesh.tensor=4",
    ),
    ({"mesh.tensor": 2, "model.d_ff": 33}, "model.d_ff=33 does not divide by mesh.tensor=2: take mesh.tensor=1"),
    ({"mesh.tensor": 4, "model.vocab_size": 9, "model.vocab_multiple": 1}, "the padded vocabulary of 9 does not divide by mesh.tensor=4"),
    ({"mesh.tensor": 4, "model.seq_len": 30, "mesh.sequence_parallel": True}, "model.seq_len=30 does not divide by mesh.tensor=4"),
    (
        {"mesh.context": 4, "model.seq_len": 20},
        "model.seq_len=20 does not divide by 2 x mesh.context=4: take model.seq_len=24, or mesh.context=5",
    ),
    ({"mesh.context": 2, "model.seq_len": 5}, "take model.seq_len=8, or mesh.context=1"),
    (
        {"mesh.context": 2, "mesh.tensor": 4, "model.seq_len": 28, "mesh.sequence_parallel": True},
        "model.seq_len=28 over mesh.context=2 does not divide by mesh.tensor=4: take mesh.tensor=2",
    ),
    ({"mesh.tensor": 4, "model.num_heads": 12, "model.head_dim": 8, "model.num_kv_heads": 6}, "num_kv_heads=6 neither divides by"),
    ({"mesh.data": 3, "train.batch_size": 3}, "model.d_model=256 does not divide by mesh.data=3, as mesh.zero=1 needs"),
    ({"mesh.data": 2, "mesh.zero": 3, "train.unroll_layers": True}, "train.unroll_layers=True undoes mesh.zero=3"),
    ({"train.recompute": "full", "train.unroll_layers": True}, "train.unroll_layers=True undoes train.recompute=full"),
    (
        {"train.ramp_start_size": 8, "train.ramp_increment": 8, "train.ramp_samples": 9},
        "with a ramp from train.ramp_start_size=8 take train.microbatch_size=8",
    ),
    ({"mesh.data": 2, "mesh.pipe": 2, "mesh.zero": 3}, "mesh.zero=3 would gather every weight for every microbatch"),
    (
        {"mesh.data": 4, "mesh.replica": 8},
        "dealt out over mesh.replica=8 x mesh.data=4: take mesh.replica x mesh.data=16, or train.batch_size=32",
    ),
    ({"mesh.sequence_parallel": True}, "mesh.sequence_parallel=True has nothing to part with mesh.tensor=1"),
)
PIPE = {"mesh.pipe": 2, "train.microbatch_size": 2}
PIPELINES = (
    (PIPE | {"pipeline.schedule": "1f1"}, "pipeline.schedule=1f1 is none of gpipe, 1f1b, interleaved, zero_bubble, zb_v or FILE.csv: take"),
    (PIPE | {"pipeline.in_flight": 4}, "pipeline.in_flight=4 needs pipeline.schedule=zero_bubble, not 1f1b"),
    (PIPE | {"pipeline.chunks": 3, "pipeline.schedule": "zb_v"}, "pipeline.chunks=3 needs pipeline.schedule=interleaved, not zb_v"),
    ({"pipeline.schedule": "zb_v"}, "pipeline.schedule=zb_v needs pipeline stages: take mesh.pipe=2 or more, or leave it out"),
    ({"pipeline.layers_per_stage": (1, 3)}, r"pipeline.layers_per_stage=\(1, 3\) needs pipeline stages: take mesh.pipe=2 or more"),
    (PIPE | {"mesh.pipe": 8}, "model.num_layers=4 cannot fill mesh.pipe=8 stages of 1 chunk .*: take mesh.pipe=5"),
    (PIPE | {"pipeline.schedule": "zb_v", "mesh.pipe": 3}, "of 2 chunks .*: take mesh.pipe=2$"),
    (PIPE | {"pipeline.schedule": "zb_v", "model.num_layers": 2}, "of 2 chunks .*: take model.num_layers=3$"),
    (PIPE | {"pipeline.schedule": "interleaved", "pipeline.chunks": 3}, "of 3 chunks .*: take pipeline.chunks=2$"),
    (
        {"mesh.pipe": 4, "train.microbatch_size": 1, "pipeline.schedule": "interleaved"},
        "of 2 chunks .*: take pipeline.chunks=1, or mesh.pipe=2$",
    ),
    ({"mesh.pipe": 2}, "train.microbatch_size is none, which leaves .* one microbatch .*: take train.microbatch_size=4"),
    (PIPE | {"train.unroll_layers": True}, "the stages of mesh.pipe=2 have a loop over layers; take train.unroll_layers=False"),
    (PIPE | {"sample.prompts": ("a",)}, r"take --config.sample.prompts= \(nothing\), .*: python -m mtnlg generate --workdir=RUN"),
    (
        {"mesh.pipe": 2, "train.microbatch_size": 1, "train.batch_size": 15, "pipeline.schedule": "interleaved"},
        "makes 15 microbatches, no multiple of mesh.pipe=2, as pipeline.schedule=interleaved needs: take train.batch_size=16",
    ),
)  # fmt: skip


@pytest.mark.parametrize(("values", "message"), PIPELINES)
def test_each_pipeline_that_does_not_fit_is_found(values, message):
    """And nothing else is wrong with it."""
    (line,) = validate.problems(configs.from_flat(dict(values)))
    assert re.search(message, line)


@pytest.mark.parametrize("schedule", schema.SCHEDULES)
def test_every_schedule_fits(schedule):
    assert validate.problems(configs.from_flat(PIPE | {"pipeline.schedule": schedule})) == []


@pytest.mark.parametrize(("values", "message"), MESHES)
def test_each_mesh_that_does_not_fit_is_found(values, message):
    assert any(message in line for line in validate.problems(configs.from_flat(dict(values))))


@pytest.mark.parametrize("values", [{"mesh.data": 3, "mesh.zero": 0, "train.batch_size": 3}, {"mesh.tensor": 4, "model.num_kv_heads": 2}])
def test_a_mesh_that_fits(values):
    assert validate.problems(configs.from_flat(values)) == []


OUT_OF_RANGE = {
    "must be at least 1": {"model.vocab_size": 0, "model.num_heads": 0, "model.d_model": -3, "mesh.data": 0, "eval.max_tokens": 0}
    | {"data.tokenizer_train_bytes": 0, "train.ramp_start_size": 0, "model.head_dim": 0},
    "must not be negative": {"eval.every_steps": -1, "sample.every_steps": -1, "log.norms_every_steps": -10, "train.num_steps": -1}
    | {"optimizer.warmup_tokens": -1, "train.ramp_samples": -1},
    "must be above 0 and finite": {"optimizer.learning_rate": math.inf, "optimizer.eps": math.nan, "optimizer.clip_norm": 0.0}
    | {"model.init_std": math.nan, "model.norm_eps": -1e-5, "model.rope_scaling_factor": 0.0, "model.rope_theta": math.inf},
    "must be 0 or above, and finite": {"optimizer.weight_decay": math.nan, "sample.temperature": -1.0},
    "is not in [0, 1]": {"optimizer.min_lr_ratio": 1.1, "optimizer.wsd_decay_fraction": -0.1},
    "is not in [0, 1)": {"optimizer.beta1": 1.0, "optimizer.beta2": math.nan, "model.dropout_attention": 1.0},
    "is not in (0, 1]": {"sample.top_p": 0.0, "model.rope_fraction": math.nan},
    "is not between 0 and 1": {"data.heldout_fraction": 0.0},
    "is not in [0, 2**32)": {"seed": 2**32},
    "must all be above 0 and finite": {"data.weights": (math.inf,)},
}


@pytest.mark.parametrize(
    ("name", "value", "wrong"), [(name, value, wrong) for wrong, values in OUT_OF_RANGE.items() for name, value in values.items()]
)
def test_each_value_out_of_range_is_found(name, value, wrong):
    assert f"{name}={value} {wrong}" in validate.problems(configs.from_flat({name: value, "model.position": "rope"}))


@pytest.mark.parametrize("values", [{"optimizer.learning_rate": 1e30}, {"seed": 0}, {"seed": 2**32 - 1}, {"optimizer.beta1": 0.0}])
def test_what_is_odd_and_legal(values):
    assert validate.problems(configs.from_flat(values)) == []


def test_the_degree_that_is_named_fits():
    """Whatever the wish, taking the cure of any of its lines leaves none."""
    shape = {"model.num_heads": 12, "model.num_kv_heads": 4, "model.d_model": 768, "mesh.sequence_parallel": True}
    for wish in range(2, 40):
        lines = validate.mesh_problems(configs.from_flat(shape | {"mesh.tensor": wish}))
        for degree in {int(line.rpartition("mesh.tensor=")[2]) for line in lines}:
            assert list(validate.mesh_problems(configs.from_flat(shape | {"mesh.tensor": degree}))) == []
        assert bool(lines) == (wish not in (2, 4))


def test_defaults_contradict_nothing():
    assert validate.problems(schema.Config()) == []


def test_all_contradictions_come_at_once():
    apart = {"model.num_kv_heads", "model.rope_fraction", "train.ramp_samples"}
    values = {name: value for name, (value, _) in CONTRADICTIONS.items() if name not in apart}
    lines = "\n".join(validate.problems(configs.from_flat(values)))
    assert all(CONTRADICTIONS[name][1] in lines for name in values)


def test_an_error_in_a_config_file_names_its_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("from mtnlg.core import config\n\ndef get_config():\n    c = config.default()\n    c.model.layers = 3\n    return c\n")
    with pytest.raises(ConfigError, match=r"layers.*broken.py:5"):
        configs.resolve([f"--config={file}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"nonsense": {}}', "there is no key 'nonsense'"),
        ('{"model": {"num_layers": {}}}', "model.num_layers={} is not a whole number"),
        ('{"model": {"nonsense": {}}}', "there is no key 'model.nonsense'"),
    ],
)
def test_an_empty_object_is_no_value(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        configs.resolve([f"--config={tmp_path / 'c.json'}"])


def test_an_empty_group_means_its_defaults(tmp_path):
    (tmp_path / "c.json").write_text('{"model": {}, "log": {}}')
    assert configs.resolve([f"--config={tmp_path / 'c.json'}"]) == schema.Config()


def test_a_colon_in_the_path_of_a_config(tmp_path):
    folder = tmp_path / "12:30"
    folder.mkdir()
    (folder / "c.json").write_text('{"seed": 7}')
    (folder / "c.py").write_text(
        "from mtnlg.core import config\n\ndef get_config(name='a'):\n    c = config.default()\n    c.name = name\n    return c\n"
    )
    assert configs.resolve([f"--config={folder / 'c.json'}"]).seed == 7
    assert [configs.resolve([f"--config={folder / 'c.py'}{arg}"]).name for arg in ("", ":b")] == ["a", "b"]


def test_a_mesh_to_generate_on_does_not_ask_how_the_run_was_trained():
    assert validate.mesh_problems(configs.from_flat({"train.recompute": "full", "train.unroll_layers": True, "train.batch_size": 7})) == []
