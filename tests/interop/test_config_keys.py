"""Keys of config.json, one thing changed at a time: the logits of transformers (slow), or refused by name."""

import itertools
import json

import cases
import numpy as np
import pytest
from cases import TOKENS
from harness import error

from mtnlg.core.errors import DataError
from mtnlg.interop import huggingface, safetensors
from mtnlg.interop.layout import Layout

GOLDEN = cases.golden()
BASES = {"gpt2": "gpt2", "opt": "opt", "neox": "pythia", "llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3"}
ABSENT = object()
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = LINEAR | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
THETA = {"rope_type": "default", "rope_theta": 500.0}
FULL, SLIDING = (dict.fromkeys(["layer_types"], [f"{kind}_attention"] * 2) for kind in ("full", "sliding"))
WINDOW = {"use_sliding_window": True, "sliding_window": 4}

EQUAL = (  # (base, what is changed)
    *((base, {}) for base in BASES),
    ("gpt2", {"activation_function": "gelu_fast"}),
    ("gpt2", {"activation_function": "gelu"}),
    ("gpt2", {"activation_function": "relu"}),
    ("gpt2", {"n_inner": 50}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt2", {"reorder_and_upcast_attn": True}),
    ("gpt2", {"layer_norm_epsilon": 0.1}),
    ("opt", {"enable_bias": False}),
    ("opt", {"activation_function": "gelu"}),
    ("opt", {"tie_word_embeddings": False}),
    ("opt", {"is_decoder": False}),
    ("neox", {"rope_scaling": LINEAR}),
    ("neox", {"rope_scaling": LLAMA3}),
    ("neox", {"rotary_pct": 0.5, "rotary_emb_base": 500}),
    ("neox", {"rotary_pct": 0.3}),
    ("neox", {"rope_theta": 77.0}),
    ("neox", {"partial_rotary_factor": 0.5}),
    ("neox", {"rope_parameters": THETA}),
    ("neox", {"rope_parameters": THETA | {"partial_rotary_factor": 1.0}}),
    ("neox", {"attention_bias": False}),
    ("neox", {"use_parallel_residual": False}),
    ("neox", {"tie_word_embeddings": True}),
    ("llama", {"rope_theta": 500.0, "rope_scaling": LINEAR}),
    ("llama", {"rope_theta": 500.0, "rope_parameters": LINEAR}),
    ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}, "rope_theta": 77.0}),
    ("llama", {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3, "original_max_position_embeddings": 16}),
    ("llama", {"rope_scaling": {"factor": 2.0}}),
    ("llama", {"original_max_position_embeddings": 32}),
    ("llama", {"partial_rotary_factor": 1.0}),
    ("llama", {"is_causal": True, "is_decoder": False}),
    ("llama", {"head_dim": 16}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": None}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"tie_word_embeddings": ABSENT}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", SLIDING | WINDOW),
    ("mistral", {"sliding_window": 4}),
    ("mistral", {"sliding_window": ABSENT}),
    ("mistral", {"num_key_value_heads": ABSENT, "num_attention_heads": 8}),
    ("qwen2", {"num_key_value_heads": None}),
    ("qwen2", {"head_dim": 16}),
    ("qwen2", {"sliding_window": 4, "max_window_layers": 0}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}),
    *(("qwen2", WINDOW | {"max_window_layers": first}) for first in (-1, 0, 2, 5, ABSENT)),
    ("qwen2", SLIDING | WINDOW),
    ("qwen2", FULL | WINDOW | {"max_window_layers": 0}),
    ("qwen3", {"attention_bias": True}),
    ("qwen3", {"num_key_value_heads": None}),
    ("qwen3", SLIDING | WINDOW),
)
ROTATING = ("llama", "mistral", "qwen2", "qwen3")
REFUSED = (  # (base, what is changed, what is told)
    *((base, {"is_causal": value}, "is_causal") for base, value in itertools.product(BASES, (False, None))),
    *((base, {"num_hidden_layers" if base != "gpt2" else "n_layer": 10**8}, "100000000 layers") for base in BASES),
    ("qwen2", SLIDING | WINDOW | {"num_hidden_layers": 10**18}, "layer_types"),
    *((base, {"partial_rotary_factor": 0.5}, "partial_rotary_factor") for base in ROTATING),
    *((base, {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor") for base in ROTATING),
    ("llama", {"partial_rotary_factor": 0.5, "rope_scaling": LINEAR}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": THETA, "rope_scaling": LINEAR}, "rope_scaling=.*rope_parameters says something else"),
    ("neox", {"rope_parameters": THETA, "rope_scaling": LINEAR}, "rope_scaling=.*rope_parameters says something else"),
    ("qwen2", FULL | {"rope_parameters": {"full_attention": LINEAR | THETA}}, "rope_parameters=.*one for all layers"),
    ("llama", {"rope_scaling": ["linear", 4.0]}, "rope_scaling=.*an object is wanted"),
    ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32}, "original_max_position_embeddings=32"),
    ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": None}, "original_max_position_embeddings=None"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"model_type": "mistral", "sliding_window": 4}, "LlamaForCausalLM, and that model_type is 'mistral'"),
    ("llama", {"model_type": ["llama"]}, "model_type is"),
    ("qwen2", {"architectures": ["LlamaForCausalLM"]}, "model_type is 'qwen2'"),
    ("qwen2", SLIDING | {"sliding_window": 4}, "layer_types"),
    ("qwen2", SLIDING | WINDOW | {"sliding_window": None}, "layer_types"),
    ("qwen2", WINDOW | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    *(("qwen2", WINDOW | {"layer_types": kinds}, "layer_types") for kinds in ([], ["full_attention"], "full_attention", 2)),
    ("qwen3", WINDOW | {"max_window_layers": 1}, "max_window_layers"),
    ("gpt2", {"activation_function": "gelu_python"}, "activation_function"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"embd_pdrop": 0.2}, "embd_pdrop"),
    ("gpt2", {"resid_pdrop": 1.0, "embd_pdrop": 1.0}, "resid_pdrop"),
    ("llama", {"attention_dropout": -0.1}, "attention_dropout"),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
    ("opt", {"layerdrop": 0.1}, "layerdrop"),
)
DROPOUT = (  # (base, what is changed, of the residual stream, of attention)
    ("gpt2", {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.3}, 0.2, 0.3),
    ("gpt2", dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), ABSENT), 0.1, 0.1),
    ("opt", {"dropout": 0.2, "attention_dropout": 0.3}, 0.2, 0.3),
    ("opt", {"dropout": ABSENT}, 0.1, 0.0),
    ("neox", {"hidden_dropout": 0.2, "attention_dropout": 0.3}, 0.2, 0.3),
    ("neox", {}, 0.0, 0.0),
    *((base, {"attention_dropout": 0.3}, 0.0, 0.3) for base in ROTATING),
    *((base, {}, 0.0, 0.0) for base in ROTATING),
)


def name_of(value) -> str | None:
    if isinstance(value, dict):
        return json.dumps({key: "absent" if one is ABSENT else one for key, one in value.items()}, separators=(",", ":"))
    return value if value in BASES else ""


def config_of(base: str, changes: dict) -> dict:
    """config.json in the older manner, where `rope_parameters` is not said."""
    config = GOLDEN[BASES[base]]["config"] | {"rope_parameters": None, "layer_types": None} | changes
    dropped = [key for key in ("rope_parameters", "layer_types") if config[key] is None]
    return {key: value for key, value in config.items() if key not in dropped and value is not ABSENT}


def folder_of(base: str, changes: dict, where, shapes: dict | None = None):
    return cases.write_folder(where, config_of(base, changes), cases.random_tensors(shapes or GOLDEN[BASES[base]]["shapes"]))


@pytest.mark.parametrize(("base", "changes", "told"), REFUSED, ids=name_of)
def test_refused(base, changes, told, tmp_path):
    with pytest.raises(DataError, match=told):
        huggingface.open_folder(folder_of(base, changes, tmp_path))


@pytest.mark.parametrize(("base", "changes", "hidden", "attention"), DROPOUT, ids=name_of)
def test_dropout(base, changes, hidden, attention, tmp_path):
    """Of a config, and of the one that is written of it."""
    foreign = huggingface.open_folder(folder_of(base, changes, tmp_path))
    (tmp_path / "config.json").write_text(huggingface.config_json(foreign.model, foreign.architecture, "float32", {}))
    for model in (foreign.model, huggingface.open_folder(tmp_path).model):
        assert (model.dropout_hidden, model.dropout_attention) == (hidden, attention)


@pytest.mark.parametrize(("first", "window"), ((-1, 4), (0, 4), (2, None)))
def test_a_window_from_the_first_layer_on(first, window, tmp_path):
    assert huggingface.open_folder(folder_of("qwen2", WINDOW | {"max_window_layers": first}, tmp_path)).model.sliding_window == window


def test_no_number_of_heads_is_that_of_the_queries(tmp_path):
    shapes = GOLDEN["llama"]["shapes"]
    biases = {f"model.layers.{layer}.self_attn.{name}_proj.bias": [32] for layer in range(2) for name in "qkv"}
    foreign = huggingface.open_folder(folder_of("qwen2", {"num_key_value_heads": None}, tmp_path, shapes | biases))
    assert foreign.model.num_kv_heads == 4


def test_the_list_of_shapes_is_made_once(monkeypatch, tmp_path):
    made, true = [], Layout.shapes
    monkeypatch.setattr(Layout, "shapes", lambda self: made.append(self) or true(self))
    huggingface.open_folder(folder_of("llama", {}, tmp_path))
    assert len(made) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("base", "changes"), EQUAL, ids=name_of)
def test_equal(base, changes, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(config_of(base, changes)))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "saved")
    shapes = {name: stored.shape for name, stored in safetensors.SafetensorsFolder(tmp_path / "saved").stored().items()}
    folder = folder_of(base, changes, tmp_path / "model", shapes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="float32").eval()
    with torch.no_grad():
        expected_BLV = theirs(torch.from_numpy(TOKENS).long()).logits.numpy()
    foreign = huggingface.open_folder(folder)
    got_BLV = cases.logits(foreign.model, cases.params_of(foreign), TOKENS)
    assert np.abs(expected_BLV).max() > 0.1 and error(got_BLV, expected_BLV) < 1e-5
