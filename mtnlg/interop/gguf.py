"""A GGUF file (llama.cpp) as a Hugging Face model: its config.json, and its tensors under Hugging Face's names and in their layout."""

import dataclasses
import os
import re
from typing import Any

import numpy as np

from mtnlg.core.errors import DataError
from mtnlg.interop import huggingface, tensors
from mtnlg.interop.foreign import Foreign
from mtnlg.interop.gguf_file import File, Quantised

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

# The settings that are honoured, without their architecture's name; one that is not here changes what the model computes.
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
_NUMBERS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta"}
_OTHERS = ("attention.value_length", "vocab_size", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor")
_OTHERS += ("rope.scaling.original_context_length", "rope.scaling.finetuned")

# Llama 3's scaling lies in the file as one factor for each frequency. Of what made them, all models up to 3.3 differ in `factor` only.
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def open_file(path: str | os.PathLike) -> Foreign:
    """Opens a GGUF file of the Llama, Qwen2 or Qwen3 architecture (SmolLM2 and Mistral are Llama's). Reads its header only.

    Raises MissingInput, or DataError: damaged, another architecture, or, all at once, what it has that cannot be honoured.
    """
    file = File(path)
    arch = file.fields.get("general.architecture")
    if type(arch) is not str or arch not in ARCHITECTURES:
        raise DataError(f"a model of architecture {_short(arch)}", file.where, f"one of {', '.join(ARCHITECTURES)}")
    settings = {key.removeprefix(f"{arch}."): value for key, value in file.fields.items() if key.startswith(f"{arch}.")}
    config, problems = _config(settings, file)
    config |= {"model_type": arch, "architectures": [ARCHITECTURES[arch]]}
    cure = "a model of the plain Llama, Qwen2 or Qwen3 layout"
    tensors.refuse(problems, f"what the file says of its {arch} cannot be honoured", file.where, cure)
    return huggingface.from_config(config, GgufTensors(file, config), None)._replace(text_fields=file.fields)


class GgufTensors:
    """The tensors of a file, as `interop.tensors.Tensors`; of one that is quantised the slice alone that is wanted is made.

    llama.cpp rotates neighbours (2i, 2i+1) of a head where Hugging Face rotates (i, i + K/2), and its files of architecture "llama" have
    the rows of query and key in that order: here they are put back. Files of the others are rotated as Hugging Face does.
    """

    def __init__(self, file: File, config: dict[str, Any]):
        self._file, self.where = file, file.where
        self._names = {_foreign_name(name): name for name in file.tensors if name != _ROPE_FACTORS}
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self._interleaved = {"q_proj": heads, "k_proj": kv_heads} if config["model_type"] == "llama" else {}

    def stored(self) -> dict[str, tensors.Stored]:
        places = {foreign: self._file.tensors[name] for foreign, name in self._names.items()}
        return {foreign: tensors.Stored(place.shape, place.kind.dtype) for foreign, place in places.items()}

    def read(self, name: str) -> np.ndarray | Quantised:
        """Slicing raises ConfigError where the numbers are quantised and the `gguf` library is not installed."""
        found = self._file.read(self._names[name])
        heads = self._interleaved.get(name.split(".")[-2])
        if heads is None:
            return found
        if isinstance(found, Quantised) and len(found.shape) > 1:
            return dataclasses.replace(found, stored=_halves_apart(found.stored, heads))
        return _halves_apart(np.asarray(found), heads)


def _halves_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _foreign_name(name: str) -> str:
    """Hugging Face's name of a tensor; if no model here has such a one, a name that no other tensor has."""
    if name in _WHOLE:
        return _WHOLE[name]
    found = _LAYER.fullmatch(name)
    known = found and found[2] in _IN_LAYER
    return f"model.layers.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}" if known else f"GGUF's {name}"


def _config(settings: dict[str, Any], file: File) -> tuple[dict[str, Any], list[str]]:
    """What config.json would say, and a line for each of the file's settings that it cannot."""
    problems = [f"{key[:80]}={_short(value)}" for key, value in settings.items() if key not in (*_SIZES, *_NUMBERS, *_OTHERS) and value]
    for key in _SIZES:
        value = settings.get(key)
        if key in settings and (type(value) is not int or not 0 < value < 1 << 31):
            problems.append(f"{key}={_short(value)}: a number of 1 or more is wanted")
    if problems:
        return {}, problems
    config = {theirs: settings[key] for key, theirs in _SIZES.items() if key in settings}
    config |= {theirs: _shortest(settings[key]) for key, theirs in _NUMBERS.items() if key in settings}
    heads = config.setdefault("num_attention_heads", 1)
    config.setdefault("num_key_value_heads", heads)
    head_dim = config.setdefault("head_dim", config.get("hidden_size", 0) // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if settings.get(key, head_dim) != head_dim:
            problems.append(f"{key}={_short(settings[key])}: the width of a head, {head_dim}, is wanted")
    if config.get("num_hidden_layers", 0) > len(file.tensors):
        problems.append(f"block_count={config['num_hidden_layers']}: more than the file has tensors")
    config["hidden_act"] = "silu"
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config["rope_scaling"] = _rope_scaling(settings, file, config, problems)
    if embedding := file.tensors.get("token_embd.weight"):
        config["vocab_size"] = embedding.shape[0]
    return config, problems


def _rope_scaling(settings: dict[str, Any], file: File, config: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
    kind, factor = settings.get("rope.scaling.type", "none"), settings.get("rope.scaling.factor")
    if kind not in ("none", "linear"):
        problems.append(f"rope.scaling.type={_short(kind)}: only none and linear can be computed")
    scaling = {"rope_type": "linear", "factor": factor} if kind == "linear" else None
    if _ROPE_FACTORS not in file.tensors:
        return scaling
    factors, theta = np.array(file.read(_ROPE_FACTORS), np.float64), config.get("rope_theta", 10000.0)
    if scaling is None and factors.shape == (config["head_dim"] // 2,) and ((factors >= 1) & (factors < 1e6)).all():
        scaling = {**_LLAMA3, "factor": _shortest(factors.max())}
        if type(theta) is float and theta >= 1 and np.allclose(factors, llama3_factors(scaling, theta, config["head_dim"]), rtol=1e-4):
            return scaling
    problems.append(f"{_ROPE_FACTORS} is not made by Llama 3's scaling from {_LLAMA3['original_max_position_embeddings']} positions")
    return None


def llama3_factors(scaling: dict, theta: float, head_dim: int) -> np.ndarray:
    """By how much each wavelength is stretched, float64 [K/2] (transformers' `_compute_llama3_parameters`)."""
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    kept = np.clip((scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / factor + kept)


def _shortest(value):
    """1e-05, where float32 has 9.999999747378752e-06; what is no float stays."""
    return float(str(np.float32(value))) if isinstance(value, float) and abs(value) < 1e30 else value


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
