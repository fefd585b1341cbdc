"""What may differ between a checkpoint and its run."""

import pytest

from mtnlg.core import config as configs
from mtnlg.core import resuming, schema, validate
from mtnlg.core.errors import ConfigError, DataError

KEYS = schema.leaves()
DIGESTS = {"docs.bin": "a" * 64, "docs.idx": "b" * 64}


def identity(changes=(), **rest):
    config = configs.to_flat(configs.from_flat(dict(changes)))
    return {"config": config, "versions": {"jax": "1"}, "data": {"tokens": DIGESTS, "eod_id": 0}} | rest


def test_every_name_in_the_lists_is_a_key_or_a_group():
    groups = {key.partition(".")[0] for key in KEYS}
    for name in (*resuming.FREE, *resuming.PREPARES, *resuming.SHAPES, *resuming.TUNING):
        assert name in KEYS or name in groups, name


def other(key):
    """Another value of a key's type; ranges do not matter here."""
    field = KEYS[key]
    if field.metadata["choices"]:
        return next(choice for choice in field.metadata["choices"] if choice != field.default)
    return {bool: not field.default, str: "other", tuple: ("1.5",)}.get(configs._base_type(field.type), 3)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_free_or_judged_by_what_it_made_or_refused(key):
    """A key that nobody has put in a list is refused: forgetting one is safe."""
    here = identity()
    here["config"] = here["config"] | {key: other(key)}
    if resuming._is_in(key, (*resuming.FREE, *resuming.SHAPES, *resuming.PREPARES)):
        resuming.require_same_run(identity(), here, (), "")
        return
    with pytest.raises(ConfigError) as error:
        resuming.require_same_run(identity(), here, (), "runs/a/checkpoints/3")
    assert error.value.what.splitlines()[1:] == [f"  - {key}: {KEYS[key].default} in the checkpoint, {other(key)} here"]
    assert error.value.cure.endswith(f"--config.resume.allow={key}")
    for allowed in (key, key.partition(".")[0]):
        resuming.require_same_run(identity(), here, (allowed,), "")
    with pytest.raises(ConfigError):
        resuming.require_same_run(identity(), here, ("train.num_steps",), "")


def test_other_tokens():
    here = identity(data={"tokens": DIGESTS | {"docs.bin": "c" * 64}, "eod_id": 2})
    with pytest.raises(DataError) as error:
        resuming.require_same_run(identity(), here, (), "")
    assert error.value.what.splitlines()[1:] == [
        "  - docs.bin: aaaaaaaaaaaa in the checkpoint, cccccccccccc here",
        "  - id of the end of a document: 0 in the checkpoint, 2 here",
    ]
    assert error.value.cure.endswith("--config.resume.allow=data")
    resuming.require_same_run(identity(), here, ("data",), "")


def test_all_that_differs_is_one_error():
    here = identity({"optimizer.beta2": 0.99, "seed": 1}, data={"tokens": {"docs.bin": "c" * 64}, "eod_id": 0})
    with pytest.raises(ConfigError) as error:
        resuming.require_same_run(identity(), here, (), "")
    assert len(error.value.what.splitlines()) == 4
    assert error.value.cure.endswith("--config.resume.allow=seed,optimizer.beta2,data")


def test_a_checkpoint_from_before_tokens_were_kept():
    """Then what prepared them is compared; and a key that it does not know had its default."""
    meta = {key: value for key, value in identity().items() if key == "config"}
    meta["config"] = {key: value for key, value in meta["config"].items() if not key.startswith("optimizer.")}
    assert resuming.require_same_run(meta, identity(), (), "") == []
    for change in ({"data.heldout_fraction": 0.5}, {"optimizer.beta2": 0.5}):
        with pytest.raises(ConfigError, match=next(iter(change))):
            resuming.require_same_run(meta, identity(change), (), "")


def test_what_is_told():
    notes = resuming.require_same_run(identity(), identity({"train.num_steps": 2000}, versions={"jax": "2"}), (), "")
    assert "jax 1 -> 2" in notes[0] and notes[1].startswith("train.num_steps was 1000 and is 2000: the learning rate")
    for pinned in ({"optimizer.decay_tokens": 9}, {"optimizer.schedule": "constant"}):
        assert resuming.require_same_run(identity(pinned), identity(pinned | {"train.num_steps": 2000}), (), "") == []


def test_weights_to_start_from_are_of_the_same_network():
    resuming.require_same_network(identity(), identity({"model.seq_len": 8, "seed": 1, "model.dropout_hidden": 0.1}), (), "")
    with pytest.raises(ConfigError, match=r"model\.activation: gelu in the checkpoint, relu here"):
        resuming.require_same_network(identity(), identity({"model.activation": "relu"}), (), "")
    resuming.require_same_network(identity(), identity({"model.activation": "relu"}), ("model.activation",), "")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("optimizer.beta3", "resume.allow=optimizer.beta3 is no key and no group of keys: take resume.allow=optimizer.beta2"),
        ("model.d_model", "resume.allow=model.d_model cannot be: it shapes the arrays"),
        ("optimizer", ""),
        ("seed", ""),
    ],
)
def test_names_that_can_be_allowed(name, line):
    found = validate.problems(configs.from_flat({"resume.allow": (name,)}))
    assert [text[: len(line)] for text in found] == ([line] if line else [])
