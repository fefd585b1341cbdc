"""Llama 1 to 3, Mistral, Qwen2 and Qwen3: one layout, which differs in biases, windows and norms of heads.

Tensors as in transformers' modeling_llama.py, modeling_mistral.py, modeling_qwen2.py, modeling_qwen3.py: Linear weights are [out, in].
"""

from typing import Any

from mtnlg.core import schema
from mtnlg.interop.layout import Part, Tensor, linear, norm
from mtnlg.interop.settings import Settings, written_rope


def _read(settings: Settings, default_groups: int | None, **options) -> schema.Model:
    """What all of them share. default_groups: of a config without the key; None, and null in a config: as many as query heads."""
    num_heads = settings.count("num_attention_heads")
    default_groups = None if "num_key_value_heads" in settings.config else default_groups
    settings.word("hidden_act", "silu", {"silu": "swiglu"})
    rope = settings.rope()
    if rope["rope_fraction"] != 1:
        settings.problems.append(f"partial_rotary_factor is {rope['rope_fraction']}: every head rotates as a whole")
    return schema.Model(
        num_layers=settings.count("num_hidden_layers"),
        d_model=settings.count("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=settings.count("num_key_value_heads", default_groups or num_heads),
        d_ff=settings.count("intermediate_size"),
        vocab_size=settings.count("vocab_size"),
        norm="rmsnorm",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation="swiglu",
        bias_norm=False,
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        init_std=settings.number("initializer_range", 0.02),
        dropout_attention=settings.rate("attention_dropout", 0.0),
        **rope,
        **options,
    )


def read_llama(settings: Settings) -> schema.Model:
    """config.json of LlamaForCausalLM."""
    biases = settings.flag("attention_bias", False)
    return _read(
        settings,
        None,
        head_dim=settings.maybe_count("head_dim"),
        seq_len=settings.count("max_position_embeddings", 2048),
        bias_qkv=biases,
        bias_attention_output=biases,
        bias_mlp=settings.flag("mlp_bias", False),
    )


def read_mistral(settings: Settings) -> schema.Model:
    """config.json of MistralForCausalLM, whose window is 4096 unless it says null."""
    absent = "sliding_window" not in settings.config
    return _read(
        settings,
        8,
        head_dim=settings.maybe_count("head_dim"),
        seq_len=settings.count("max_position_embeddings", 4096 * 32),
        sliding_window=4096 if absent else settings.maybe_count("sliding_window"),
        bias_qkv=False,
        bias_attention_output=False,
        bias_mlp=False,
    )


def read_qwen2(settings: Settings) -> schema.Model:
    """config.json of Qwen2ForCausalLM: biases of query, key and value, and no others."""
    return _read(
        settings,
        32,
        head_dim=settings.maybe_count("head_dim"),
        seq_len=settings.count("max_position_embeddings", 32768),
        sliding_window=settings.window(settings.count("num_hidden_layers")),
        bias_qkv=True,
        bias_attention_output=False,
        bias_mlp=False,
    )


def read_qwen3(settings: Settings) -> schema.Model:
    """config.json of Qwen3ForCausalLM: every head of queries and keys is normalised."""
    biases = settings.flag("attention_bias", False)
    return _read(
        settings,
        32,
        head_dim=settings.count("head_dim", 128),
        seq_len=settings.count("max_position_embeddings", 32768),
        sliding_window=settings.window(settings.count("num_hidden_layers")),
        bias_qkv=biases,
        bias_attention_output=biases,
        bias_mlp=False,
        qk_norm=True,
    )


def _write(model: schema.Model) -> dict[str, Any]:
    num_heads, num_groups, head_dim = model.heads
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "intermediate_size": model.ff_dim,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_groups,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": model.seq_len,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": model.dropout_attention,
        **written_rope(model),
    }


def write_llama(model: schema.Model) -> dict[str, Any]:
    return _write(model) | {"attention_bias": model.bias_qkv, "mlp_bias": model.bias_mlp}


def write_mistral(model: schema.Model) -> dict[str, Any]:
    return _write(model) | {"sliding_window": model.sliding_window}


def _write_window(model: schema.Model) -> dict[str, Any]:
    sliding = model.sliding_window is not None
    return {"use_sliding_window": sliding, "sliding_window": model.sliding_window, "max_window_layers": 0 if sliding else model.num_layers}


def write_qwen2(model: schema.Model) -> dict[str, Any]:
    written = _write(model) | _write_window(model)
    if model.heads[2] * model.num_heads == model.d_model:
        del written["head_dim"]  # which it does not have
    return written


def write_qwen3(model: schema.Model) -> dict[str, Any]:
    return _write(model) | _write_window(model) | {"attention_bias": model.bias_qkv}


def tensors(model: schema.Model) -> tuple[Tensor, ...]:
    """The layout of all of them."""
    layer = "model.layers.{layer}."
    found = [Tensor("model.embed_tokens.weight", (Part("embedding/tokens", "V | D"),))]
    found += norm(f"{layer}input_layernorm", "attention_norm", False)
    found += linear(f"{layer}self_attn.q_proj", "attention/query", "H K | D", model.bias_qkv)
    found += linear(f"{layer}self_attn.k_proj", "attention/key_value", "G K | D", model.bias_qkv, 0)
    found += linear(f"{layer}self_attn.v_proj", "attention/key_value", "G K | D", model.bias_qkv, 1)
    if model.qk_norm:
        found += [
            *norm(f"{layer}self_attn.q_norm", "attention/query_norm", False),
            *norm(f"{layer}self_attn.k_norm", "attention/key_norm", False),
        ]
    found += linear(f"{layer}self_attn.o_proj", "attention/output", "D | H K", model.bias_attention_output)
    found += norm(f"{layer}post_attention_layernorm", "mlp_norm", False)
    found += linear(f"{layer}mlp.gate_proj", "mlp/gate", "F | D", model.bias_mlp)
    found += linear(f"{layer}mlp.up_proj", "mlp/up", "F | D", model.bias_mlp)
    found += linear(f"{layer}mlp.down_proj", "mlp/down", "D | F", model.bias_mlp)
    found += norm("model.norm", "final_norm", False)
    if not model.tie_embeddings:
        found += [Tensor("lm_head.weight", (Part("head/kernel", "V | D"),))]
    return tuple(found)
