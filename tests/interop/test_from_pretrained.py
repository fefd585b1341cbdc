"""Other projects' models in Python: the numbers of one device on every mesh, read by slices."""

import cases
import numpy as np
import pytest
from harness import error

import mtnlg
from mtnlg import convert
from mtnlg import weights as sources
from mtnlg.core import schema
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.data import tokenizer as tokenizers
from mtnlg.interop import huggingface
from mtnlg.interop.foreign import Foreign

TEXT = "the cat sat on the mat, and the dog lay under the table.\n"
ON_MESHES = (
    ("gpt2", {"tensor": 4, "data": 2, "sequence_parallel": True}),
    ("pythia", {"data": 2, "context": 2}),
    ("llama_tied_groups", {"tensor": 4}),  # more shards than key/value heads
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """(case) -> its folder, with a tokenizer of 300 ids."""
    where = tmp_path_factory.mktemp("folders")

    def of(case):
        if not (where / case).exists():
            found = cases.golden()[case]
            cases.write_folder(where / case, found["config"], cases.random_tensors(found["shapes"]))
            tokenizers.train([TEXT * 5], where / case / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
        return where / case

    return of


@pytest.fixture
def folder(folder_of):
    return folder_of("llama_tied_groups")


def test_scores_and_choices_are_those_of_whole_logits(folder):
    lm, foreign = mtnlg.from_pretrained(folder), huggingface.open_folder(folder)
    ids = lm.tokenizer.encode(TEXT)
    logits_LV = cases.logits(foreign.model, cases.params_of(foreign), np.array([ids], np.int32))[0].astype(np.float64)
    log_probs_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
    expected = log_probs_LV[np.arange(len(ids) - 1), ids[1:]]
    assert error(-lm.scorer.scores([ids], [1])[0].nll, expected) < 1e-5
    likeliest = int(logits_LV[-1, :300].argmax())
    assert likeliest not in lm.tokenizer.end_ids
    assert lm.generate(ids, max_new_tokens=1, temperature=0) == [likeliest]


@pytest.mark.parametrize(("case", "degrees"), ON_MESHES)
def test_any_mesh_the_same_numbers(case, degrees, folder_of):
    one, many = mtnlg.from_pretrained(folder_of(case)), mtnlg.from_pretrained(folder_of(case), schema.Mesh(**degrees))
    assert many.loss(TEXT) == pytest.approx(one.loss(TEXT), rel=1e-5)
    ids = one.tokenizer.encode("the cat")
    assert many.generate(ids, max_new_tokens=12, temperature=0) == one.generate(ids, max_new_tokens=12, temperature=0)


def test_a_device_reads_only_what_it_holds(folder, monkeypatch):
    """With four tensor shards, no read asks for a whole kernel's heads or columns."""
    asked, true = [], Foreign.read
    monkeypatch.setattr(
        Foreign, "read", lambda self, key, index=(), dtype=None: asked.append((key, index)) or true(self, key, index, dtype)
    )
    lm = mtnlg.from_pretrained(folder, schema.Mesh(tensor=4))
    heads = [index[1] for key, index in asked if key.path == "blocks/attention/query/kernel"]
    assert {(part.start or 0, part.stop) for part in heads} == {(head, head + 1) for head in range(4)}
    columns = [index[1] for key, index in asked if key.path == "blocks/mlp/up/kernel"]
    width = lm.engine.config.model.ff_dim // 4
    assert {part.indices(4 * width)[1] - part.indices(4 * width)[0] for part in columns} == {width}


def test_without_a_tokenizer(folder, tmp_path):
    (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    try:
        with pytest.raises(MissingInput, match="no tokenizer is there"):
            mtnlg.from_pretrained(folder)
        assert mtnlg.from_pretrained(folder, tokenizer=tmp_path).tokenizer.vocab_size == 300
    finally:
        (tmp_path / "tokenizer.model").rename(folder / "tokenizer.model")


def test_a_damaged_folder_with_a_hash_list(folder, tmp_path):
    convert.to_hf(sources.open_weights(folder), tmp_path / "out", {}, progress=False)
    file = tmp_path / "out" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors has changed"):
        mtnlg.from_pretrained(tmp_path / "out")
