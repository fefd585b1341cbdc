"""A GGUF file (llama.cpp) as a Hugging Face model: its config.json, and its tensors under Hugging Face's names and in their layout."""

import math
import re
from typing import NamedTuple

import numpy as np

from mtnlg.core.errors import DataError
from mtnlg.interop.gguf_file import File

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"

# Every setting of a model that is honoured, without its architecture's name; one that is not here changes what the model computes.
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_OTHERS = ("attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length", "vocab_size")
_OTHERS += ("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
_OTHERS += ("rope.scaling.finetuned",)

# Llama 3's scaling lies in the file as one factor for each frequency. Of what made them, all models up to 3.3 differ in `factor` only.
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Model(NamedTuple):
    """config: what config.json would say; tensors: an `interop.tensors.Tensors`; fields: the file's, for its tokenizer."""

    config: dict
    tensors: "GgufTensors"
    fields: dict


def open_model(path) -> Model:
    """Opens a GGUF file of the Llama, Qwen2 or Qwen3 architecture (SmolLM2 and Mistral are Llama's). Reads its header only.

    Raises MissingInput, or DataError: damaged, another architecture, or, all at once, what it has that cannot be honoured.
    """
    file = File(path)
    arch = file.fields.get("general.architecture")
    if type(arch) is not str or arch not in ARCHITECTURES:
        raise DataError(f"a model of architecture {_short(arch)}", file.where, f"one of {', '.join(ARCHITECTURES)}")
    problems = [f"the tensor {_short(name)}" for name in file.tensors if name != _ROPE_FACTORS and _foreign_name(name) is None]
    known = {*_SIZES, *_OTHERS}
    settings = {key.removeprefix(f"{arch}."): value for key, value in file.fields.items() if key.startswith(f"{arch}.")}
    problems += [f"{arch}.{key[:80]}={_short(value)}" for key, value in settings.items() if key not in known and value]
    problems += [f"no {name!r}" for name in ("token_embd.weight", "output_norm.weight") if name not in file.tensors]
    config = _config(arch, settings, file, problems)
    if problems:
        listed = "; ".join(problems[:8]) + (f"; {len(problems) - 8} more" if len(problems) > 8 else "")
        raise DataError(f"what cannot be honoured: {listed}", file.where, "a model of the plain Llama, Qwen2 or Qwen3 layout")
    return Model(config, GgufTensors(file, config), file.fields)


class GgufTensors:
    """The tensors of a file, as `interop.tensors.Tensors`; one is dequantised at a time.

    llama.cpp rotates neighbours (2i, 2i+1) of a head where Hugging Face rotates (i, i + K/2), and its files of architecture "llama" have
    the rows of query and key in that order: here they are put back. Files of the others are rotated as Hugging Face does.
    """

    def __init__(self, file: File, config: dict):
        self._file = file
        self._names = {foreign: name for name in file.tensors if (foreign := _foreign_name(name))}
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self._interleaved = {"q_proj": heads, "k_proj": kv_heads} if config["model_type"] == "llama" else {}

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each tensor, by name; what is quantised is read as float32."""
        stored = {foreign: self._file.tensors[name] for foreign, name in self._names.items()}
        return {name: (tensor.shape, tensor.kind.dtype) for name, tensor in stored.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor. Raises ConfigError where it is quantised and the `gguf` library is not installed."""
        found = self._file.read(self._names[name])
        heads = self._interleaved.get(name.split(".")[-2])
        if heads is None:
            return found
        return found.reshape(heads, -1, 2, *found.shape[1:]).swapaxes(1, 2).reshape(found.shape)


def _foreign_name(name: str) -> str | None:
    """Hugging Face's name of a tensor; None for one that no model here has."""
    if name in _WHOLE:
        return _WHOLE[name]
    found = _LAYER.fullmatch(name)
    if not found or found[2] not in _IN_LAYER:
        return None
    return f"model.layers.{int(found[1])}.{_IN_LAYER[found[2]]}.{found[3]}"


def _config(arch: str, settings: dict, file: File, problems: list[str]) -> dict:
    def size(key: str, default: int | None = None) -> int:
        value = settings.get(key, default)
        if type(value) is not int or not 0 < value < 1 << 31:
            problems.append(f"{arch}.{key}={_short(value)}")
            return 1
        return value

    def number(key: str, default: float | None = None) -> float:
        value = settings.get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            problems.append(f"{arch}.{key}={_short(value)}")
            return 1.0
        return float(str(np.float32(value)))  # 1e-05, where float32 has 9.999999747378752e-06

    config = {"model_type": arch, "architectures": [ARCHITECTURES[arch]], "hidden_act": "silu"}
    config |= {theirs: size(key) for key, theirs in _SIZES.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = kv_heads = size("attention.head_count_kv", heads)
    config["head_dim"] = head_dim = size("attention.key_length", config["hidden_size"] // heads)
    config["rms_norm_eps"] = number("attention.layer_norm_rms_epsilon")
    config["rope_theta"] = number("rope.freq_base", 10000.0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if size(key, head_dim) != head_dim:
            problems.append(f"{arch}.{key}={settings[key]} for heads of width {head_dim}")
    if head_dim % 2:
        problems.append(f"heads of width {head_dim}")
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config["rope_scaling"] = _rope_scaling(arch, settings, file, config, problems)
    for name, rows in (("attn_q", heads * head_dim), ("attn_k", kv_heads * head_dim)):
        wrong = [t for t, stored in file.tensors.items() if f".{name}." in t and stored.shape[0] != rows]
        problems += [f"{t!r} of {file.tensors[t].shape[0]} rows instead of {rows}" for t in wrong]
    if embedding := file.tensors.get("token_embd.weight"):
        config["vocab_size"] = embedding.shape[0]
    return config


def _rope_scaling(arch: str, settings: dict, file: File, config: dict, problems: list[str]) -> dict | None:
    kind = settings.get("rope.scaling.type", "none")
    factor = settings.get("rope.scaling.factor", 0.0)
    is_linear = kind == "linear" and type(factor) is float and 1 <= factor < math.inf
    if kind != "none" and not is_linear:
        problems.append(f"{arch}.rope.scaling.type={_short(kind)} with factor {_short(factor)}")
    if _ROPE_FACTORS not in file.tensors:
        return {"rope_type": "linear", "factor": factor} if is_linear else None
    factors = np.array(file.read(_ROPE_FACTORS), np.float64)
    if not is_linear and factors.shape == (config["head_dim"] // 2,) and ((factors >= 1) & (factors < 1e6)).all():
        scaling = {**_LLAMA3, "factor": float(str(np.float32(factors.max())))}
        if np.allclose(factors, llama3_factors(scaling, config["rope_theta"], config["head_dim"]), rtol=1e-4):
            return scaling
    problems.append(f"{_ROPE_FACTORS!r}, not made by Llama 3's scaling from {_LLAMA3['original_max_position_embeddings']} positions")
    return None


def llama3_factors(scaling: dict, theta: float, head_dim: int) -> np.ndarray:
    """By how much each wavelength is stretched, float64 [K/2] (transformers' `_compute_llama3_parameters`)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    kept = np.clip((scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / factor + kept)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
