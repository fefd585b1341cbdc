"""GGUF files written by the `gguf` library, read here: fields, tensors, llama.cpp's order of rows, and whatever a hostile file holds."""

import random
import struct
import warnings

import ml_dtypes
import numpy as np
import pytest

from mtnlg import weights as sources
from mtnlg.core import manifest, schema
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.interop import gguf as interop
from mtnlg.interop import gguf_file
from mtnlg.interop.gguf_file import KINDS, File
from mtnlg.interop.layout import Key

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, HEAD_DIM, WIDTH, FF, VOCAB = 4, 2, 8, 32, 64, 96
QUANTIZERS = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16")


def tensors_of(num_layers=2, arch="llama"):
    """The tensors under Hugging Face's names, in its layout."""
    draw = np.random.default_rng(0)
    made = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}
    for n in range(num_layers):
        block = {f"self_attn.{x}_proj.weight": (h * HEAD_DIM, WIDTH) for x, h in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))}
        if arch == "qwen2":
            block |= {f"self_attn.{x}_proj.bias": (h * HEAD_DIM,) for x, h in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))}
        if arch == "qwen3":
            block |= {"self_attn.q_norm.weight": (HEAD_DIM,), "self_attn.k_norm.weight": (HEAD_DIM,)}
        block |= {"self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM), "mlp.down_proj.weight": (WIDTH, FF)}
        block |= {"mlp.gate_proj.weight": (FF, WIDTH), "mlp.up_proj.weight": (FF, WIDTH)}
        block |= {"input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,)}
        made |= {f"model.layers.{n}.{name}": shape for name, shape in block.items()}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in made.items()}


def permuted(weights, num_heads):
    """`LlamaModel.permute` of llama.cpp's converter."""
    return weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(path, tensors, arch="llama", kind="F32", change=lambda writer: None, extra=()):
    """What llama.cpp's converter makes of these tensors; names by the library's own table."""
    num_layers = 1 + max(int(name.split(".")[2]) for name in tensors if ".layers." in name)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], num_layers)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(num_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5e5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_array("tokenizer.ggml.tokens", ["a", "é", ""])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, 2.0])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    change(writer)
    for name, array in tensors.items():
        if arch == "llama" and ".q_proj." in name:
            array = permuted(array, HEADS)
        if arch == "llama" and ".k_proj." in name:
            array = permuted(array, KV_HEADS)
        of = kind if array.ndim == 2 and "norm" not in name else "F32"
        qtype = gguf.GGMLQuantizationType[of]
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), gguf.quantize(array, qtype), raw_dtype=qtype)
    for name, array, qtype in extra:
        writer.add_tensor(name, array, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_tensors_are_hugging_faces_again(tmp_path, arch):
    tensors = tensors_of(arch=arch)
    model = interop.open_file(write(tmp_path / "m.gguf", tensors, arch))
    assert model.tensors.stored() == {name: (array.shape, array.dtype) for name, array in tensors.items()}
    for name, array in tensors.items():
        np.testing.assert_array_equal(model.tensors.read(name), array)


def test_the_rows_of_query_and_key_lie_otherwise_in_the_file(tmp_path):
    """Without this the test above would prove nothing."""
    tensors = tensors_of()
    stored = File(write(tmp_path / "m.gguf", tensors))
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
        assert not np.array_equal(stored.read(f"blk.0.{theirs}.weight"), tensors[f"model.layers.0.self_attn.{ours}.weight"])


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_quantised_numbers_are_near_the_real_ones_and_equal_the_librarys(tmp_path, kind):
    tensors = tensors_of()
    path = write(tmp_path / "m.gguf", tensors, kind=kind)
    model, reader = interop.open_file(path), gguf.GGUFReader(path)
    steps = {"F32": 0, "F16": 2e-3, "BF16": 8e-3, "Q8_0": 5e-3, "Q4_0": 0.13, "Q4_1": 0.07, "Q5_0": 0.07, "Q5_1": 0.04}
    for name, array in tensors.items():
        shape, dtype = model.tensors.stored()[name]
        found = np.asarray(model.tensors.read(name))
        assert (found.shape, found.dtype) == (shape, dtype)
        blocks = array.reshape(-1, 32) if array.size % 32 == 0 else array.reshape(1, -1)
        largest = np.abs(blocks).max(axis=1, keepdims=True) * np.ones_like(blocks)
        assert np.all(
            np.abs(found.astype(np.float32) - array) <= steps[kind] * largest.reshape(array.shape) * (array.size % 32 == 0) + 1e-7
        )
    file = File(path)
    for tensor in reader.tensors:
        theirs = gguf.dequantize(np.ascontiguousarray(tensor.data), tensor.tensor_type)
        np.testing.assert_array_equal(
            np.asarray(file.read(tensor.name)).astype(np.float32), theirs.reshape(file.tensors[tensor.name].shape)
        )


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_equal_the_librarys(tmp_path, kind):
    """The library cannot make them: any bytes are numbers."""
    stored = KINDS[gguf.GGMLQuantizationType[kind]]
    content = np.random.default_rng(1).integers(0, 60, (6, 2 * stored.block_bytes), np.uint8)
    qtype = gguf.GGMLQuantizationType[kind]
    path = write(tmp_path / "m.gguf", tensors_of(), extra=[("wide", content, qtype)])
    found = np.asarray(File(path).read("wide"))
    assert found.shape == (6, 512) and found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_array_equal(found, gguf.dequantize(content, qtype))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
def test_a_slice_is_that_of_the_whole(tmp_path, kind, monkeypatch):
    """In blocks and out of them, none of it too; and in slabs of a few rows."""
    qtype = gguf.GGMLQuantizationType[kind]
    content = np.random.default_rng(1).integers(0, 60, (6, 3 * KINDS[qtype].block_bytes), np.uint8)
    stored = File(write(tmp_path / "m.gguf", tensors_of(), extra=[("wide", content, qtype)])).read("wide")
    whole = gguf.dequantize(content, qtype)
    monkeypatch.setattr(gguf_file, "SLAB_NUMBERS", 2 * whole.shape[1])
    cuts = [slice(None), slice(1, 2), slice(30, 70), slice(64, 65), slice(5, 5), slice(600, 700)]
    for rows in (slice(None), slice(1, 6), slice(4, 4), slice(9, 12)):
        np.testing.assert_array_equal(stored[rows,], whole[rows])
        for columns in cuts:
            np.testing.assert_array_equal(stored[rows, columns], whole[rows, columns])


def test_every_slice_of_a_quantised_parameter_is_that_of_the_whole(tmp_path):
    """Query and key, whose rows lie otherwise in the file, among them."""
    foreign = interop.open_file(write(tmp_path / "m.gguf", tensors_of(), kind="Q8_0"))
    for key in list(foreign.layout.keys()):
        whole = foreign.read(key)
        for start, stop in ((0, 1), (1, 3), (whole.shape[0] - 1, whole.shape[0])):
            np.testing.assert_array_equal(foreign.read(key, (slice(start, stop),)), whole[start:stop])
            if whole.ndim > 1:
                np.testing.assert_array_equal(foreign.read(key, (slice(None), slice(start, stop, 1))), whole[:, start:stop])
        np.testing.assert_array_equal(foreign.read(key, (slice(0, None, 3),)), whole[::3])


def test_no_more_is_dequantised_than_the_slice_asks_for(tmp_path, monkeypatch):
    foreign = interop.open_file(write(tmp_path / "m.gguf", tensors_of(), kind="Q8_0"))
    made, true = [], gguf.dequantize
    monkeypatch.setattr(gguf, "dequantize", lambda rows, kind: made.append(true(rows, kind)) or made[-1])
    for path, rows in (("embedding/tokens", 3 * WIDTH), ("blocks/attention/query/kernel", WIDTH * WIDTH)):
        made.clear()
        foreign.read(Key(path, 0 if "blocks" in path else None), (slice(5, 8),))
        assert sum(one.size for one in made) == rows  # of a query, whole blocks of 32 columns
    made.clear()
    foreign.read(Key("blocks/attention/query/kernel", 0), (slice(None), slice(1, 3)))
    assert sum(one.size for one in made) == 2 * HEAD_DIM * WIDTH


def test_the_table_of_kinds_is_the_librarys():
    for number, kind in KINDS.items():
        qtype = gguf.GGMLQuantizationType(number)
        assert (qtype.name, *gguf.GGML_QUANT_SIZES[qtype]) == kind[:3]
    assert KINDS[30].dtype == ml_dtypes.bfloat16


def test_config_and_fields(tmp_path):
    model = interop.open_file(write(tmp_path / "m.gguf", tensors_of(arch="qwen3"), "qwen3"))
    assert model.architecture == "Qwen3ForCausalLM"
    assert model.model == schema.Model(
        num_layers=2,
        d_model=WIDTH,
        d_ff=FF,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        seq_len=128,
        vocab_size=VOCAB,
        position="rope",
        rope_theta=5e5,
        norm="rmsnorm",
        norm_eps=1e-6,
        bias_norm=False,
        activation="swiglu",
        bias_qkv=False,
        bias_attention_output=False,
        bias_mlp=False,
        qk_norm=True,
        tie_embeddings=False,
    )
    assert model.text_fields["tokenizer.ggml.tokens"] == ["a", "é", ""]
    assert model.text_fields["tokenizer.ggml.scores"] == [0.0, -1.5, 2.0]
    assert model.text_fields["tokenizer.ggml.add_bos_token"] is True
    for key, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items():
        assert key.startswith("GGUF.") or model.text_fields[key] == field.contents()


def test_a_head_that_is_not_there_is_tied(tmp_path):
    tensors = tensors_of()
    del tensors["lm_head.weight"]
    model = interop.open_file(write(tmp_path / "m.gguf", tensors))
    assert model.model.tie_embeddings and "lm_head.weight" not in model.tensors.stored()


def llama3_factors(factor, low=1.0, high=4.0, original=8192):
    """`generate_extra_tensors` of llama.cpp's converter, number by number."""
    made = []
    for i in range(0, HEAD_DIM, 2):
        wavelength = 2 * np.pi * 5e5 ** (i / HEAD_DIM)
        if wavelength < original / high:
            made.append(1.0)
        elif wavelength > original / low:
            made.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            made.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(made, np.float32)


def with_factors(path, factors, change=lambda writer: None):
    return write(path, tensors_of(), extra=[("rope_freqs.weight", factors, gguf.GGMLQuantizationType.F32)], change=change)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3s_scaling_is_found_in_its_factors(tmp_path, factor):
    factors = llama3_factors(factor)
    assert np.unique(factors).size > 1
    model = interop.open_file(with_factors(tmp_path / "m.gguf", factors)).model
    found = (model.rope_low_freq_factor, model.rope_high_freq_factor, model.rope_original_seq_len)
    assert (model.rope_scaling, model.rope_scaling_factor, *found) == ("llama3", factor, 1.0, 4.0, 8192)


def test_transformers_makes_the_same_factors():
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "factor": 8.0}
    np.testing.assert_allclose(interop.llama3_factors(scaling, 5e5, HEAD_DIM), llama3_factors(8.0), rtol=1e-6)


@pytest.mark.parametrize(
    "factors", [llama3_factors(8.0, original=64), np.ones(3, np.float32), np.full(4, np.nan, np.float32), np.zeros(4, np.float32)]
)
def test_other_factors_are_refused(tmp_path, factors):
    with pytest.raises(DataError, match=r"rope_freqs\.weight is not made by Llama 3's scaling from 8192 positions"):
        interop.open_file(with_factors(tmp_path / "m.gguf", factors))


def test_linear_scaling(tmp_path):
    def linear(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)

    model = interop.open_file(write(tmp_path / "m.gguf", tensors_of(), change=linear)).model
    assert (model.rope_scaling, model.rope_scaling_factor) == ("linear", 2.0)
    with pytest.raises(DataError, match="is not made by Llama 3"):
        interop.open_file(with_factors(tmp_path / "n.gguf", llama3_factors(8.0), linear))


def test_all_that_cannot_be_honoured_is_named_at_once(tmp_path):
    def change(writer):
        writer.add_expert_count(8)
        writer.add_logit_scale(0.0)  # nothing
        writer.add_sliding_window(64)

    with pytest.raises(DataError) as caught:
        interop.open_file(write(tmp_path / "m.gguf", tensors_of(), change=change))
    said = str(caught.value)
    for part in ("expert_count=8", "attention.sliding_window=64", "m.gguf", "Try: "):
        assert part in said
    assert "logit_scale" not in said


def test_a_stretched_rope_of_another_kind(tmp_path):
    def yarn(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)

    with pytest.raises(DataError, match="rope.scaling.type='yarn'"):
        interop.open_file(write(tmp_path / "m.gguf", tensors_of(), change=yarn))


def test_a_tensor_too_many_or_too_few(tmp_path):
    experts = [("blk.0.ffn_gate_inp.weight", np.ones((4, WIDTH), np.float32), gguf.GGMLQuantizationType.F32)]
    tensors = tensors_of()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(DataError) as caught:
        interop.open_file(write(tmp_path / "m.gguf", tensors, extra=experts))
    said = str(caught.value)
    assert "GGUF's blk.0.ffn_gate_inp.weight: nothing in this" in said and "model.layers.1.mlp.up_proj.weight: missing" in said


def test_a_name_of_hugging_faces_means_nothing_here(tmp_path):
    """Two tensors would be one."""
    extra = [("lm_head.weight", np.ones((VOCAB, WIDTH), np.float32), gguf.GGMLQuantizationType.F32)]
    for head in ([], ["lm_head.weight"]):
        tensors = {name: array for name, array in tensors_of().items() if name not in head}
        with pytest.raises(DataError, match=r"GGUF's lm_head\.weight: nothing in this architecture is called so"):
            interop.open_file(write(tmp_path / "m.gguf", tensors, extra=extra))


@pytest.mark.parametrize("counts", [(2**17 + 1, 0), (0, 2**17 + 1)])
def test_more_names_than_any_model_has(tmp_path, counts):
    """They are not read one by one."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + bytes(2**17 * 24))
    with pytest.raises(DataError, match=r"131073.*; 131072 of each at most are read"):
        File(tmp_path / "m.gguf")


def test_more_values_than_any_vocabulary_has(tmp_path, monkeypatch):
    """In all arrays together."""
    monkeypatch.setattr(gguf_file, "MAX_ITEMS", 5)
    with pytest.raises(DataError, match="arrays of 6 values and more; 5 at most are read"):
        File(write(tmp_path / "m.gguf", tensors_of()))


def test_more_layers_than_tensors(tmp_path):
    """They are not counted one by one."""

    def change(writer):
        writer.kv_data[0]["llama.block_count"].value = 2**31 - 1

    with pytest.raises(DataError, match="block_count=2147483647: more than the file has tensors"):
        interop.open_file(write(tmp_path / "m.gguf", tensors_of(), change=change))


def test_types_that_are_not_read_are_all_named(tmp_path):
    extra = []
    for name in ("Q2_K", "IQ4_NL"):
        qtype = gguf.GGMLQuantizationType[name]
        extra.append((name, np.zeros((2, gguf.GGML_QUANT_SIZES[qtype][1]), np.uint8), qtype))
    with pytest.raises(DataError, match=r"types that are not read: Q2_K, IQ4_NL .*m\.gguf.*Try: a file of F32, F16"):
        interop.open_file(write(tmp_path / "m.gguf", tensors_of(), extra=extra))


@pytest.mark.parametrize("named", ["mamba", ["llama"]])
def test_another_architecture(tmp_path, named):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    if named != "mamba":
        del writer.kv_data[0]["general.architecture"]
        writer.add_array("general.architecture", named)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(DataError, match=r"architecture .{1,2}(mamba|llama).*Try: one of llama, qwen2, qwen3"):
        interop.open_file(tmp_path / "m.gguf")


def test_what_is_no_file(tmp_path):
    with pytest.raises(MissingInput, match=r"no such file .*no\.gguf"):
        interop.open_file(tmp_path / "no.gguf")
    for content in (b"", b"GGUF", b"GGML" * 20, b"GGUF\0\0\0\3" + bytes(40)):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(DataError, match=r"m\.gguf.*Try: the whole"):
            interop.open_file(tmp_path / "m.gguf")
    with pytest.raises(DataError, match="cannot be read"):
        interop.open_file(tmp_path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    content = write(tmp_path / "m.gguf", tensors_of(1)).read_bytes()
    for length in range(0, len(content) - 1, len(content) // 60):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.gguf.*Try: "):
            interop.open_file(tmp_path / "cut.gguf")


def test_no_mutation_of_a_file_gives_more_than_an_error(tmp_path):
    """Bytes changed, numbers blown up, pieces moved: it is read whole, or refused in one line. Nothing is made that is not in the file."""
    wide = [
        (k, np.zeros((2, KINDS[gguf.GGMLQuantizationType[k]].block_bytes), np.uint8), gguf.GGMLQuantizationType[k])
        for k in ("Q4_K", "Q6_K")
    ]
    small = tensors_of(1)
    contents = [write(tmp_path / f"{kind}.gguf", small, kind=kind, extra=[]).read_bytes() for kind in QUANTIZERS]
    contents.append(write(tmp_path / "wide.gguf", small, extra=wide).read_bytes())
    contents.append(with_factors(tmp_path / "factors.gguf", llama3_factors(8.0)).read_bytes())
    draw, read, refused = random.Random(0), 0, 0
    for trial in range(900):
        content = bytearray(contents[trial % len(contents)])
        header = content.find(b"output_norm.weight") + 400
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = draw.randrange(header)
            match draw.randrange(4):
                case 0:
                    content[at] = draw.randrange(256)
                case 1:
                    content[at : at + 8] = draw.choice((2**64 - 1, 2**63, 2**40, 2**32, 0)).to_bytes(8, "little")
                case 2:
                    del content[at : at + draw.randrange(1, 9)]
                case 3:
                    content[at:at] = content[draw.randrange(header) :][: draw.randrange(1, 40)]
        (tmp_path / "m.gguf").write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numbers that are not finite
                file = File(tmp_path / "m.gguf")
                for name in file.tensors:
                    np.asarray(file.read(name))
                model = interop.open_file(tmp_path / "m.gguf")
                for name, (shape, dtype) in model.tensors.stored().items():
                    found = np.asarray(model.tensors.read(name))
                    assert (found.shape, found.dtype) == (shape, dtype)
            read += 1
        except DataError as error:
            assert "Try: " in str(error) and len(str(error)) < 6000
            refused += 1
    assert read and refused > 400


def test_no_mutation_passes_a_hash_list(tmp_path):
    """Wherever it is: most of those in the numbers cannot be seen without one."""
    path = write(tmp_path / "m.gguf", tensors_of(1), kind="Q8_0")
    (tmp_path / manifest.NAME).write_text(manifest.content(tmp_path))
    content, draw = path.read_bytes(), random.Random(0)
    assert sources.open_weights(path).architecture == "LlamaForCausalLM"
    for _ in range(200):
        changed, at = bytearray(content), draw.randrange(len(content))
        changed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(changed if draw.randrange(4) else changed[:at])
        with pytest.raises(DataError, match="m.gguf has changed"):
            sources.open_weights(path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_same_numbers(tmp_path, arch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    utils = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    path = write(tmp_path / "m.gguf", tensors_of(arch=arch), arch, kind="Q8_0")
    said = utils.load_gguf_checkpoint(str(path))["config"]
    foreign = interop.open_file(path)
    keys = ("model_type", "num_hidden_layers", "hidden_size", "num_key_value_heads", "rope_theta")
    assert [said[key] for key in keys] == [arch, 2, WIDTH, KV_HEADS, foreign.model.rope_theta]
    like = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(said.pop("model_type"), **said))
    read = utils.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=like)["tensors"]
    assert read.keys() == foreign.tensors.stored().keys()
    for name, tensor in read.items():
        np.testing.assert_array_equal(foreign.tensors.read(name), tensor.numpy())
