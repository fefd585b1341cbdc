"""Rotary positions for longer texts: as with a config that says that scaling; what cannot be scaled is refused."""

import dataclasses
import json

import cases
import numpy as np
import pytest

from mtnlg import lm
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.data import tokenizer as tokenizers
from mtnlg.infer import stretch
from mtnlg.model.positions import rotary_frequencies

MODEL = schema.Model(position="rope", seq_len=100)
TEXT = "the cat sat on the mat, and the dog lay under the table.\n"


def test_frequencies_are_divided():
    plain = rotary_frequencies(MODEL)
    long = stretch.stretched(MODEL, 250, "linear")
    np.testing.assert_allclose(rotary_frequencies(long), plain / 2.5, rtol=1e-12)
    np.testing.assert_allclose(rotary_frequencies(stretch.stretched(long, 200, "linear")), plain / 5, rtol=1e-12)
    assert stretch.stretched(MODEL, 250, "none") == MODEL == dataclasses.replace(long, rope_scaling="none", rope_scaling_factor=8.0)


@pytest.mark.parametrize(
    ("changes", "context", "scaling", "said"),
    [
        ({"position": "alibi"}, 200, "linear", "the model's positions are of the kind alibi: only rotary ones can be scaled"),
        ({"position": "learned"}, 200, "linear", "the model's positions are of the kind learned"),
        ({"rope_scaling": "llama3"}, 200, "linear", "the model's rotary positions are scaled already, by the rule llama3"),
        ({}, None, "linear", "the model has learnt from 100 tokens at a time: for no more there is nothing to scale"),
        ({}, 100, "linear", "the model has learnt from 100 tokens at a time"),
        ({}, 200, "yarn", "rope_scaling='yarn' is not one of none, linear"),
    ],
)
def test_what_cannot_be_scaled(changes, context, scaling, said):
    with pytest.raises(ConfigError) as caught:
        stretch.stretched(dataclasses.replace(MODEL, **changes), context, scaling)
    assert str(caught.value).startswith(said)


def test_what_is_told():
    assert stretch.notes(MODEL, 100, "none") == stretch.notes(dataclasses.replace(MODEL, position="learned"), 200, "none") == []
    assert stretch.notes(MODEL, 150, "linear") == ["rotary positions are scaled by 1.5, so that 150 tokens lie where 100 did"]
    assert "learnt from 100 tokens at a time: what comes after them may be nonsense" in stretch.notes(MODEL, 101, "none")[0]


@pytest.fixture
def written(tmp_path):
    """(**changes of the rotary parameters) -> a Hugging Face folder of a LLaMA."""

    def write(**changes):
        found = cases.golden()["llama_tied_groups"]
        cases.write_folder(tmp_path / "model", found["config"], cases.random_tensors(found["shapes"]))
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"rope_parameters": config["rope_parameters"] | changes}))
        tokenizers.train([TEXT * 5], tmp_path / "model" / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
        return tmp_path / "model"

    return write


def test_it_is_the_scaling_of_the_config(written):
    folder = written()
    plain = lm.from_pretrained(folder)
    longer, asked = 3 * plain.seq_len, {"temperature": 0.0, "max_new_tokens": 4, "num_likeliest": 0}
    prompt = (plain.tokenizer.encode(TEXT * 200))[: plain.seq_len + 4]
    scaled, unscaled = (lm.from_pretrained(folder, context=longer, rope_scaling=name) for name in ("linear", "none"))
    theirs = lm.from_pretrained(written(rope_type="linear", factor=3.0), context=longer)
    found, expected = scaled.answer(prompt, **asked), theirs.answer(prompt, **asked)
    assert found.tokens == expected.tokens
    assert unscaled.engine.score(prompt, 0) != scaled.engine.score(prompt, 0) == theirs.engine.score(prompt, 0)
    assert scaled.notes == (f"rotary positions are scaled by 3, so that {longer} tokens lie where {plain.seq_len} did",)
    assert len(unscaled.notes) == 1 and "may be nonsense" in unscaled.notes[0] and plain.notes == ()
