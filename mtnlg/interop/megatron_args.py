"""Megatron-LM's `args`, the settings in each of its checkpoints, to a model and back (megatron/training/arguments.py).

A checkpoint of an older version lacks what came later; it then has Megatron's default.
"""

from typing import Any

from mtnlg.core import schema
from mtnlg.interop.settings import Settings

NONE = (None, False, 0)
POSITIONS = {"learned_absolute": "learned", "rope": "rope", "none": "none"}
NORMS = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
REFUSED = {  # keys that must be off
    "num_experts": "only dense feed-forward layers can be computed",
    "multi_latent_attention": "keys and values are not compressed",
    "apply_layernorm_1p": "norms are stored less 1",
    "layernorm_zero_centered_gamma": "norms are stored less 1",
    "apply_residual_connection_post_layernorm": "the residual stream is not normalised",
    "squared_relu": "this non-linearity cannot be computed",
    "quick_geglu": "this non-linearity cannot be computed",
    "glu_activation": "this non-linearity cannot be computed",
    "glu_linear_offset": "a gate multiplies the columns as they are",
    "activation_func_clamp_value": "activations are not clamped",
    "rotary_interleaved": "halves of a head rotate, not neighbours",
    "no_rope_freq": "every layer rotates, or none does",
    "qk_l2_norm": "only qk_layernorm can be computed",
    "attention_output_gate": "attention has no gate",
    "softmax_scale": "scores are divided by the root of a head's width",
    "experimental_attention_variant": "only softmax attention can be computed",
    "linear_attention_freq": "only softmax attention can be computed",
    "window_attn_skip_freq": "every layer has the same window, or none has",
    "hybrid_override_pattern": "every layer is attention and feed-forward",
    "is_hybrid_model": "every layer is attention and feed-forward",
    "heterogeneous_layers_config_path": "every layer has the same shape",
    "heterogeneous_layers_config_encoded_json": "every layer has the same shape",
    "mtp_num_layers": "only the next token is predicted",
    "retro_add_retriever": "nothing is retrieved",
}


def read(settings: Settings, num_ids: int, vocab_size: int | None) -> schema.Model:
    """num_ids: rows of the stored embedding; vocab_size: the tokenizer's, None: as many."""
    config = settings.config
    for key, why in REFUSED.items():
        if config.get(key) not in NONE:
            settings.refuse(key, why)
    settings.require("softmax_type", "vanilla", "only the plain softmax can be computed")
    num_heads, width = settings.count("num_attention_heads"), settings.count("hidden_size")
    head_dim = settings.count("kv_channels", max(width // num_heads, 1))
    norm = settings.word("normalization", "LayerNorm", NORMS)
    qk_norm = settings.flag("qk_layernorm", False)
    if qk_norm and norm != "rmsnorm":
        settings.refuse("qk_layernorm", "heads are normalised by RMSNorm only")
    biases = settings.flag("add_bias_linear", True)
    grouped = settings.flag("group_query_attention", False)
    return schema.Model(
        num_layers=settings.count("num_layers"),
        d_model=width,
        num_heads=num_heads,
        num_kv_heads=settings.count("num_query_groups") if grouped else num_heads,
        head_dim=head_dim,
        d_ff=settings.count("ffn_hidden_size", 4 * width),
        vocab_size=vocab_size or num_ids,
        seq_len=settings.count("max_position_embeddings", config.get("seq_length")),
        norm=norm,
        norm_eps=settings.number("norm_epsilon", settings.number("layernorm_epsilon", 1e-5)),
        activation=_activation(settings, biases),
        bias_qkv=settings.flag("add_qkv_bias", False) or biases,
        bias_attention_output=biases,
        bias_mlp=biases,
        bias_norm=norm == "layernorm",
        qk_norm=qk_norm,
        sliding_window=_window(settings),
        tie_embeddings=not settings.flag("untie_embeddings_and_output_weights", False),
        init_std=settings.number("init_method_std", 0.02),
        **_positions(settings, head_dim),
    )


def _activation(settings: Settings, biases: bool) -> str:
    """GELU's tanh form is what Megatron's fused kernels compute (megatron/core/fusions/fused_bias_gelu.py), which need a bias."""
    if settings.flag("swiglu", False):
        return "swiglu"
    if settings.flag("openai_gelu", False):
        return "gelu"
    exact = settings.flag("onnx_safe_gelu", False) or not (settings.flag("bias_gelu_fusion", True) and biases)
    return "gelu_exact" if exact else "gelu"


def _window(settings: Settings) -> int | None:
    """Megatron counts the tokens before: (left, right), -1 for all."""
    given = settings.config.get("window_size")
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) != 2 or any(type(one) is not int for one in given) or given[0] < -1:
        settings.refuse("window_size", "two numbers are wanted, tokens before and behind")
        return None
    if given[1] not in (0, -1):
        settings.refuse("window_size", "a token never sees what is behind it")
    return None if given[0] == -1 else given[0] + 1


def _positions(settings: Settings, head_dim: int) -> dict[str, Any]:
    """Keys of schema.Model. Versions before `position_embedding_type` have two flags."""
    position = settings.word("position_embedding_type", "learned_absolute", POSITIONS)
    if settings.flag("use_rotary_position_embeddings", False):
        position = "rope"
    elif position == "learned" and not settings.flag("add_position_embedding", True):
        position = "none"
    if position != "rope":
        return {"position": position}
    rotated = int(head_dim * settings.number("rotary_percent", 1.0))
    found = {"position": position, "rope_theta": settings.number("rotary_base", 10000), "rope_fraction": rotated / head_dim}
    stretched = settings.config.get("rotary_seq_len_interpolation_factor") not in (None, 1)
    if settings.flag("use_rope_scaling", False):
        if stretched:
            settings.refuse("rotary_seq_len_interpolation_factor", "positions are stretched already, by use_rope_scaling")
        found |= {"rope_scaling": "llama3", "rope_scaling_factor": settings.number("rope_scaling_factor", 8.0)}
    elif stretched:
        found |= {"rope_scaling": "linear", "rope_scaling_factor": settings.number("rotary_seq_len_interpolation_factor", 1)}
    return found


def write(model: schema.Model) -> dict[str, Any]:
    """What `read` and Megatron-LM's `--use-checkpoint-args` read. What Megatron cannot say is not the same when it is read again."""
    num_heads, num_groups, head_dim = model.heads
    biases = model.bias_attention_output
    return {
        "num_layers": model.num_layers,
        "encoder_num_layers": model.num_layers,
        "hidden_size": model.d_model,
        "ffn_hidden_size": model.ff_dim,
        "num_attention_heads": num_heads,
        "group_query_attention": num_groups != num_heads,
        "num_query_groups": num_groups,
        "kv_channels": head_dim,
        "seq_length": model.seq_len,
        "encoder_seq_length": model.seq_len,
        "max_position_embeddings": model.seq_len,
        "position_embedding_type": {ours: theirs for theirs, ours in POSITIONS.items()}.get(model.position),
        "add_position_embedding": model.position == "learned",
        "use_rotary_position_embeddings": model.position == "rope",
        "rotary_percent": model.rope_fraction,
        "rotary_base": int(model.rope_theta) if model.rope_theta.is_integer() else model.rope_theta,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": model.rope_scaling_factor if model.rope_scaling == "linear" else None,
        "use_rope_scaling": model.rope_scaling == "llama3",
        "rope_scaling_factor": model.rope_scaling_factor if model.rope_scaling == "llama3" else 8.0,
        "normalization": {ours: theirs for theirs, ours in NORMS.items()}[model.norm],
        "norm_epsilon": model.norm_eps,
        "layernorm_epsilon": model.norm_eps,
        "apply_layernorm_1p": False,
        "qk_layernorm": model.qk_norm,
        "add_bias_linear": biases,
        "add_qkv_bias": model.bias_qkv and not biases,
        "swiglu": model.activation == "swiglu",
        "openai_gelu": False,
        "onnx_safe_gelu": False,
        "squared_relu": False,
        "bias_gelu_fusion": model.activation == "gelu" and biases,
        "bias_swiglu_fusion": model.activation == "swiglu",
        "window_size": None if model.sliding_window is None else (model.sliding_window - 1, 0),
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
        "num_experts": None,
        "init_method_std": model.init_std,
        "hidden_dropout": model.dropout_hidden,
        "attention_dropout": model.dropout_attention,
    }
