"""Safetensors files: what the library wrote is read, what we write the library reads, and damage is told."""

import json
import random
import re

import cases
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mtnlg.core import manifest
from mtnlg.core.errors import DataError, MissingInput, MtnlgError
from mtnlg.interop import huggingface
from mtnlg.interop import safetensors as ours
from mtnlg.interop.safetensors import SafetensorsFolder

CASE = "llama_tied_groups"
MUTATIONS = 3000


@pytest.fixture
def folder(tmp_path):
    """Of one case, in three files with an index."""
    found = cases.golden()[CASE]
    tensors = cases.random_tensors(found["shapes"])
    cases.write_folder(tmp_path / "model", found["config"], tensors)
    (tmp_path / "model" / ours.SINGLE).unlink()
    names = list(tensors)
    parts = [(name, names[number::3]) for number, name in enumerate(ours.shard_names(3))]
    for file, held in parts:
        cases.write_safetensors(tmp_path / "model" / file, {name: tensors[name] for name in held})
    stored = {name: ours.Stored(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    (tmp_path / "model" / ours.INDEX).write_text(ours.index(stored, parts))
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16", "float64", "int32"))
def test_what_the_library_writes_is_read(dtype, tmp_path):
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    written = {"b": np.arange(6).reshape(2, 3).astype(dtype), "a": np.ones((), dtype), "none": np.zeros((0, 4), dtype)}
    safetensors.numpy.save_file(written, tmp_path / ours.SINGLE, metadata={"format": "pt"})
    read = SafetensorsFolder(tmp_path)
    assert read.stored() == {name: (array.shape, dtype) for name, array in written.items()}
    for name, array in written.items():
        assert read.read(name).tobytes() == array.tobytes()


def test_what_we_write_the_library_reads(tmp_path):
    written = cases.random_tensors({"x": (3, 5), "long name": (7,)}) | {"narrow": np.ones((2, 2), ml_dtypes.bfloat16)}
    cases.write_safetensors(tmp_path / ours.SINGLE, written)
    with safetensors.safe_open(tmp_path / ours.SINGLE, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert {name: file.get_tensor(name).tobytes() for name in file.keys()} == {name: a.tobytes() for name, a in written.items()}  # noqa: SIM118


def test_all_that_is_wrong_is_told_at_once(folder):
    """Missing, unknown, of another shape, and numbers that do not fit: one error."""
    first, *_ = ours.shard_names(3)
    read = SafetensorsFolder(folder)
    held = [name for name, place in read._places.items() if place[0].name == first]
    tensors = {name: read.read(name).copy() for name in held}
    gone, reshaped, wide, *_ = [name for name in held if "proj" in name]
    del tensors[gone]
    tensors["model.extra"] = np.ones(3, np.float32)
    tensors[reshaped] = tensors[reshaped][:-1]
    tensors[wide] = tensors[wide].astype(np.float64)
    cases.write_safetensors(folder / first, tensors)
    index = json.loads((folder / ours.INDEX).read_text())
    del index["weight_map"][gone]
    index["weight_map"]["model.extra"] = first
    (folder / ours.INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError) as caught:
        huggingface.open_folder(folder)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert len(lines) == 4
    for line, told in zip(
        sorted(lines), sorted([f"{gone}: missing", "model.extra: nothing", f"{reshaped}: [", f"{wide}: float64"]), strict=True
    ):
        assert told in line


def test_config_that_cannot_be_honoured_is_told_at_once(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, "hidden_act": "gelu", "num_hidden_layers": "two"}
    config |= {"quantization_config": {"quant_method": "gptq"}, "rms_norm_eps": float("nan")}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError) as caught:
        huggingface.open_folder(folder)
    for told in ("yarn", "hidden_act='gelu'", "num_hidden_layers is 'two'", "quantization_config", "rms_norm_eps is nan"):
        assert told in str(caught.value)


def test_unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="MambaForCausalLM is not known.*GPT2LMHeadModel"):
        huggingface.open_folder(folder)


def test_pickles_are_left_alone(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.")
    with pytest.raises(DataError, match=r"pytorch_model.bin is a pickle"):
        huggingface.open_folder(folder)


def test_a_file_of_the_index_that_is_not_there(folder):
    (folder / ours.shard_names(3)[1]).unlink()
    with pytest.raises(MissingInput, match="1 of 3 files that the index names are not there: model-00002-of-00003"):
        huggingface.open_folder(folder)


@pytest.mark.parametrize("name", ("../outside.safetensors", "/etc/passwd", "model.bin"))
def test_an_index_names_files_of_its_folder_only(folder, name):
    index = json.loads((folder / ours.INDEX).read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    (folder / ours.INDEX).write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"{re.escape(name)}' is no safetensors file of this folder"):
        huggingface.open_folder(folder)


def test_a_tied_head_that_differs(tmp_path):
    found = cases.golden()[CASE]
    tensors = cases.random_tensors(found["shapes"])
    same = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    huggingface.open_folder(cases.write_folder(tmp_path / "same", found["config"], same))
    other = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(DataError, match=r"ties lm_head\.weight"):
        huggingface.open_folder(cases.write_folder(tmp_path / "other", found["config"], other))


def test_names_without_the_prefix_of_the_head(tmp_path):
    """As GPT-2's own file on the hub has them, with its buffers."""
    found = cases.golden()["gpt2"]
    tensors = cases.random_tensors(found["shapes"])
    whole = huggingface.open_folder(cases.write_folder(tmp_path / "whole", found["config"], tensors))
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()} | {
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)
    }
    short = huggingface.open_folder(cases.write_folder(tmp_path / "bare", found["config"], bare))
    for key in whole.layout.keys():  # noqa: SIM118
        assert np.array_equal(whole.read(key), short.read(key))


def mutated(content: bytes, chance: random.Random) -> bytes:
    """One of: bits turned, a piece cut out, a piece doubled, the end gone, a number changed."""
    kind, at = chance.randrange(5), chance.randrange(min(len(content), 4000) if chance.random() < 0.7 else len(content))
    if kind == 0:
        found = bytearray(content)
        for _ in range(chance.randrange(1, 4)):
            found[(at + chance.randrange(50)) % len(found)] ^= 1 << chance.randrange(8)
        return bytes(found)
    if kind == 1:
        return content[:at] + content[at + chance.randrange(1, 40) :]
    if kind == 2:
        return content[:at] + content[at : at + chance.randrange(1, 40)] + content[at:]
    if kind == 3:
        return content[:at]
    digits = [match.span() for match in re.finditer(rb"\d+", content[:4000])] or [(at, at + 1)]
    start, end = chance.choice(digits)
    return content[:start] + str(chance.choice([0, 1, 7, 2**31, 2**63, 10**30])).encode() + content[end:]


def test_damaged_files_never_crash_and_never_pass_a_hash_list(folder):
    """3,000 of them: without a list, an error of ours or a model; with one, always an error."""
    files = [*sorted(folder.glob("*.safetensors")), folder / ours.INDEX]
    chance, outcomes = random.Random(5), {"refused": 0, "read": 0}
    listed = manifest.content(folder)
    for number in range(MUTATIONS):
        file = chance.choice(files)
        whole = file.read_bytes()
        damaged = mutated(whole, chance)
        if damaged == whole:
            continue
        file.write_bytes(damaged)
        try:
            foreign = huggingface.open_folder(folder)
            for key in list(foreign.layout.keys())[: 3 if number % 10 else None]:
                foreign.read(key)
            outcomes["read"] += 1
        except MtnlgError as error:
            outcomes["refused"] += 1
            assert error.exit_code in (65, 66)
        (folder / manifest.NAME).write_text(listed)
        with pytest.raises(DataError, match="differ from the folder's hash list"):
            huggingface.open_folder(folder)
        (folder / manifest.NAME).unlink()
        file.write_bytes(whole)
    assert outcomes["refused"] > MUTATIONS // 3 and outcomes["read"] > 100  # changed numbers alone nobody can see without the list
