"""Tiny models of Hugging Face's architectures, an option set each, with numbers that depend on nobody's library.

Written to golden/ by `PYTHONPATH=.:tests/interop python tests/interop/test_huggingface.py --write`, where torch and transformers are.
"""

import json
import pathlib
import zlib

import numpy as np

from mtnlg.core.tree import map_with_path
from mtnlg.interop import safetensors
from mtnlg.interop.tensors import Stored
from mtnlg.model import count, loss, transformer

VOCAB_SIZE, LENGTH = 320, 24
TOKENS = np.random.RandomState(1).randint(VOCAB_SIZE, size=(2, LENGTH)).astype(np.int32)
_SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40}
_SIZES |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
_WIDE = _SIZES | {"intermediate_size": 48}
_GPT2 = {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 0, "eos_token_id": 0}
_RATES = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
CASES = {  # name: (model_type, settings)
    "gpt2": ("gpt2", _GPT2 | _RATES),
    "gpt2_untied_exact": ("gpt2", _GPT2 | _RATES | {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 48}),
    "pythia": ("gpt_neox", _WIDE),
    "neox_sequential": ("gpt_neox", _WIDE | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 0.5}),
    "opt": ("opt", _SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "opt_no_bias": ("opt", _SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "enable_bias": False}),
    "llama": ("llama", _WIDE),
    "llama_tied_groups": ("llama", _WIDE | {"num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 16}),
    "llama_linear_biases": (
        "llama",
        _WIDE | {"num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True, "mlp_bias": True},
    ),
    "llama3": ("llama", _WIDE | {"num_key_value_heads": 2, "rope_theta": 5e5, "rope_scaling": _LLAMA3}),
    "mistral": ("mistral", _WIDE | {"num_key_value_heads": 2, "sliding_window": 7}),
    "mistral_no_window": ("mistral", _WIDE | {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("qwen2", _WIDE | {"num_key_value_heads": 2}),
    "qwen2_window": ("qwen2", _WIDE | {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    "qwen3": ("qwen3", _WIDE | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
}
GOLDEN = pathlib.Path(__file__).parent / "golden" / "huggingface.json"


def golden() -> dict:
    """{case: {'config', 'shapes', 'logits', 'grads'?}}, as transformers gave them."""
    return json.loads(GOLDEN.read_text())


def random_tensor(name: str, shape) -> np.ndarray:
    """From RandomState, whose stream NumPy has frozen; scales of norms about 1."""
    chance = np.random.RandomState(zlib.crc32(name.encode()))
    is_scale = len(shape) == 1 and name.endswith(".weight")
    return (0.2 * chance.standard_normal(shape) + is_scale).astype(np.float32)


def random_tensors(shapes: dict) -> dict[str, np.ndarray]:
    return {name: random_tensor(name, shape) for name, shape in shapes.items()}


def write_folder(folder: pathlib.Path, config: dict, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    """config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / safetensors.SINGLE, tensors)
    return folder


def write_safetensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    stored = {name: Stored(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    path.write_bytes(safetensors.header(stored) + b"".join(tensor.tobytes() for tensor in tensors.values()))


def params_of(foreign) -> dict:
    """The whole tree in float32."""
    whole = lambda path, leaf: foreign.read_stacked(path, (slice(None),) * len(leaf.shape), np.float32)  # noqa: E731
    return map_with_path(whole, count.abstract_params(foreign.model))


def batch(tokens_BL: np.ndarray) -> dict:
    places_BL = np.broadcast_to(np.arange(tokens_BL.shape[1], dtype=np.int32), tokens_BL.shape)
    weights_BL = (places_BL < tokens_BL.shape[1] - 1).astype(np.float32)
    ones_BL = np.ones_like(tokens_BL)
    targets_BL = np.roll(tokens_BL, -1, axis=1)
    return {"tokens": tokens_BL, "targets": targets_BL, "positions": places_BL, "segment_ids": ones_BL, "weights": weights_BL}


def logits(model, params: dict, tokens_BL: np.ndarray) -> np.ndarray:
    """[B, L, V] of our model."""
    x_BLD, _ = transformer.hidden(model, params, batch(tokens_BL))
    logits_TV = loss.chunk_logits(x_BLD.reshape(-1, model.d_model), transformer.head_kernel(model, params), model.vocab_size)
    return np.asarray(logits_TV[:, : model.vocab_size]).reshape(*tokens_BL.shape, model.vocab_size)
