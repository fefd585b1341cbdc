"""Hugging Face's architectures: what transformers computes with the same numbers, and every number back again.

`make test` reads what transformers gave from golden/huggingface.json; the slow tests ask it themselves.
"""

import json
import pathlib
import sys
import tempfile

import cases
import jax
import numpy as np
import pytest
from cases import CASES, TOKENS, VOCAB_SIZE
from harness import error, worst
from numpy_gpt import flatten

from mtnlg import convert, spmd
from mtnlg import weights as sources
from mtnlg.core import schema
from mtnlg.core.tree import map_with_path
from mtnlg.data import tokenizer as tokenizers
from mtnlg.interop import huggingface, safetensors
from mtnlg.interop.layout import BLOCKS, Key
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes

TOLERANCE = 1e-5
WITH_GRADIENTS = ("gpt2", "llama", "llama3")
GOLDEN = cases.golden() if cases.GOLDEN.exists() else {}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of one with 300 ids, fewer than the models have."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = ["the cat sat on the mat, and the dog lay under the table.\n" * 5]
    tokenizers.train(text, folder / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
    return folder


def folder_of(case: str, where):
    found = GOLDEN[case]
    return cases.write_folder(where / case, found["config"], cases.random_tensors(found["shapes"]))


def our_gradients(model: schema.Model, params: dict) -> dict:
    config = schema.Config(model=model)
    fields = {name: a[None] for name, a in cases.batch(TOKENS).items()}
    sums = jax.jit(lambda params: spmd.loss_and_grad(config, meshes.make(config.mesh))(params, fields, 1, 0))(params)
    return jax.tree.map(lambda g: np.asarray(g / sums["weight"]), sums["grads"])


def their_gradients(foreign, grads: dict) -> dict:
    """Gradients by their names as our tree."""

    def of(path, leaf):
        layers = range(foreign.model.num_layers) if path.startswith(BLOCKS) else [None]
        found = [foreign.layout.ours(grads.__getitem__, Key(path, layer)) for layer in layers]
        return np.stack(found) if path.startswith(BLOCKS) else found[0]

    return map_with_path(of, count.abstract_params(foreign.model))


def digest(grads: dict) -> dict:
    """[norm, random projection] of every gradient."""
    return {path: [float(np.linalg.norm(g)), float(np.vdot(g, cases.random_tensor(path, g.shape)))] for path, g in flatten(grads).items()}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_that_transformers_gave(case, tmp_path):
    foreign = huggingface.open_folder(folder_of(case, tmp_path))
    got_BLV = cases.logits(foreign.model, cases.params_of(foreign), TOKENS)
    assert error(got_BLV[:, -1], GOLDEN[case]["logits"]) < TOLERANCE


@pytest.mark.parametrize("case", WITH_GRADIENTS)
def test_gradients_are_those_that_transformers_gave(case, tmp_path):
    foreign = huggingface.open_folder(folder_of(case, tmp_path))
    got, expected = digest(our_gradients(foreign.model, cases.params_of(foreign))), GOLDEN[case]["gradients"]
    assert got.keys() == expected.keys()
    for path, numbers in expected.items():
        assert error(got[path], numbers) < 1e-4, path  # a projection of many numbers: theirs are each within 1e-5 (slow tests)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_every_number_is_the_same(case, tokenizer, tmp_path):
    folder = folder_of(case, tmp_path)
    convert.to_run(sources.open_weights(folder), tmp_path / "run", {}, str(tokenizer), progress=False)
    convert.to_hf(sources.open_weights(tmp_path / "run"), tmp_path / "back", {}, max_shard_bytes=20_000, progress=False)
    before, after = (huggingface.open_folder(one) for one in (folder, tmp_path / "back"))
    assert (tmp_path / "back" / "model.safetensors.index.json").exists()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == [before.architecture]
    assert huggingface.essential(after.model) == huggingface.essential(before.model)
    assert after.tensors.stored() == before.tensors.stored()
    for name in before.tensors.stored():
        assert after.tensors.read(name).tobytes() == before.tensors.read(name).tobytes(), name


def test_a_wrong_layout_would_be_seen(tmp_path):
    """Negative control: keys and values exchanged, rows of heads in another order, and the logits are others."""
    foreign = huggingface.open_folder(folder_of("llama3", tmp_path))
    params = cases.params_of(foreign)
    expected = GOLDEN["llama3"]["logits"]
    key_value = params["blocks"]["attention"]["key_value"]["kernel"]
    query = params["blocks"]["attention"]["query"]["kernel"]
    for kernel in (key_value, query):
        kept = kernel.copy()
        kernel[...] = kernel[:, :, ::-1] if kernel is query else kernel[:, :, :, ::-1]
        assert error(cases.logits(foreign.model, params, TOKENS)[:, -1], expected) > 100 * TOLERANCE
        kernel[...] = kept


def test_every_slice_is_a_slice_of_the_whole(tmp_path):
    """What a shard reads, whatever its part."""
    for case in ("gpt2", "pythia", "llama3"):
        foreign = huggingface.open_folder(folder_of(case, tmp_path))
        for key in list(foreign.layout.keys()):
            whole = foreign.read(key)
            for axis in range(whole.ndim):
                if (foreign.layout.our_shape(key.path)[axis], axis) == (2, 2) and "key_value/kernel" in key.path:
                    continue  # keys and values are never parted
                part = (*[slice(None)] * axis, slice(1, max(whole.shape[axis] // 2, 2)))
                assert np.array_equal(foreign.read(key, part), whole[part]), (case, key, axis)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transformers_now(case, tokenizer, tmp_path):
    """Of a model that transformers made and saved: logits and gradients; of the folder that we export: the very same logits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = theirs(case, tmp_path / "made")
    model.save_pretrained(tmp_path / "saved", max_shard_size="30KB")
    foreign = huggingface.open_folder(tmp_path / "saved")
    params = cases.params_of(foreign)
    tokens = torch.from_numpy(TOKENS).long()
    expected_BLV = model(tokens).logits
    assert error(cases.logits(foreign.model, params, TOKENS), expected_BLV.detach()) < TOLERANCE
    if case in WITH_GRADIENTS:
        got = our_gradients(foreign.model, params)
        worst_error, path = worst(got, their_gradients(foreign, backward(model, expected_BLV, tokens)))
        assert worst_error < TOLERANCE, path

    convert.to_run(sources.open_weights(tmp_path / "saved"), tmp_path / "run", {}, str(tokenizer), progress=False)
    convert.to_hf(sources.open_weights(tmp_path / "run"), tmp_path / "out", {}, progress=False)
    load = transformers.AutoModelForCausalLM.from_pretrained
    again, told = load(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(model)
    assert torch.equal(again.eval()(tokens).logits, expected_BLV)


@pytest.mark.slow
def test_the_golden_numbers_are_those_of_transformers(tmp_path):
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    for case, expected in GOLDEN.items():
        now = made(case, tmp_path / case)
        assert now["shapes"] == expected["shapes"] and now["config"] == expected["config"], case
        assert error(now["logits"], expected["logits"]) < 1e-6, case


def saved(case: str, folder: pathlib.Path) -> tuple[dict, dict]:
    """(config.json, shapes by name) of a model of this case, as transformers saves it."""
    import transformers

    model_type, settings = CASES[case]
    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **settings)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    told = ("model_type", "architectures", "rope_parameters", "tie_word_embeddings", "sliding_window", "layer_types")
    kept = {key: config[key] for key in config if key in CASES[case][1] or key in told}
    return kept, {name: list(stored.shape) for name, stored in safetensors.SafetensorsFolder(folder).stored().items()}


def theirs(case: str, folder: pathlib.Path):
    """The model of a case in transformers, with the numbers of `random_tensor`."""
    import transformers

    config, shapes = saved(case, folder)
    cases.write_folder(folder, config, cases.random_tensors(shapes))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval()


def backward(model, logits_BLV, tokens) -> dict:
    """Gradients of the mean loss by name."""
    import torch

    rows, targets = logits_BLV[:, :-1].reshape(-1, VOCAB_SIZE), tokens[:, 1:].reshape(-1)
    torch.nn.functional.cross_entropy(rows, targets).backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def made(case: str, folder: pathlib.Path) -> dict:
    """What the golden file says of a case."""
    import torch

    config, shapes = saved(case, folder)
    model, tokens = theirs(case, folder), torch.from_numpy(TOKENS).long()
    logits_BLV = model(tokens).logits
    found = {"config": config, "shapes": shapes, "logits": logits_BLV[:, -1].tolist()}
    if case in WITH_GRADIENTS:
        found["gradients"] = digest(their_gradients(huggingface.open_folder(folder), backward(model, logits_BLV, tokens)))
    return found


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    with tempfile.TemporaryDirectory() as folder:
        cases.GOLDEN.write_text(json.dumps({case: made(case, pathlib.Path(folder) / case) for case in CASES}) + "\n")
