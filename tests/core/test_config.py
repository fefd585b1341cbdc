"""Configs: what is written comes back, what is wrong is named."""

import dataclasses
import json

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
        ("data.weights", "0.25,0.75", (0.25, 0.75)),
        ("log.tensorboard", "False", False),
    ],
)
def test_spellings(name, text, value):
    assert configs.parse(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"), [("train.num_steps", "1.5"), ("train.num_steps", "inf"), ("log.tensorboard", "maybe"), ("data.weights", "a,b")]
)
def test_wrong_types_name_key_value_and_type(name, text):
    with pytest.raises(ConfigError, match=f"{name}='{text}' is not a "):
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
    "model.vocab_size": (0, "must be at least 1"),
    "sample.temperature": (-1.0, "must be 0 or above"),
    "sample.top_p": (0.0, "not above 0"),
    "log.norms_every_steps": (7, "no multiple of log.every_steps"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_each_contradiction_is_found(name):
    value, message = CONTRADICTIONS[name]
    assert any(message in line for line in validate.problems(configs.from_flat({name: value})))


def test_defaults_contradict_nothing():
    assert validate.problems(schema.Config()) == []


def test_all_contradictions_come_at_once():
    values = {name: value for name, (value, _) in CONTRADICTIONS.items() if name != "model.num_kv_heads"}
    lines = "\n".join(validate.problems(configs.from_flat(values)))
    assert all(CONTRADICTIONS[name][1] in lines for name in values)


def test_an_error_in_a_config_file_names_its_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("from mtnlg.core import config\n\ndef get_config():\n    c = config.default()\n    c.model.layers = 3\n    return c\n")
    with pytest.raises(ConfigError, match=r"layers.*broken.py:5"):
        configs.resolve([f"--config={file}"])
