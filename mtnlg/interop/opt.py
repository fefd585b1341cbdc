"""OPT (transformers' modeling_opt.py): ReLU, and learned positions whose first two rows are skipped."""

from typing import Any

from mtnlg.core import schema
from mtnlg.interop.layout import Part, Tensor, linear, norm
from mtnlg.interop.settings import GELU, WRITTEN_GELU, Settings

OFFSET = 2


def read(settings: Settings) -> schema.Model:
    """config.json of OPTForCausalLM. Its dropout leaves the embedding alone; ours has the same rate there."""
    settings.require("do_layer_norm_before", True, "norms lie before attention and feed-forward")
    settings.require("_remove_final_layer_norm", False, "the last norm is always there")
    settings.require("layer_norm_elementwise_affine", True, "norms have scales")
    settings.require("layerdrop", 0, "no layer is left out")
    width = settings.count("hidden_size", 768)
    settings.require("word_embed_proj_dim", width, "the embedding is as wide as the model")
    biases = settings.flag("enable_bias", True)
    return schema.Model(
        num_layers=settings.count("num_hidden_layers", 12),
        d_model=width,
        num_heads=settings.count("num_attention_heads", 12),
        d_ff=settings.count("ffn_dim", 3072),
        vocab_size=settings.count("vocab_size", 50272),
        seq_len=settings.count("max_position_embeddings", 2048),
        position_offset=OFFSET,
        activation=settings.word("activation_function", "relu", GELU),
        bias_qkv=biases,
        bias_attention_output=biases,
        bias_mlp=biases,
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        init_std=settings.number("init_std", 0.02),
        dropout_hidden=settings.rate("dropout", 0.1),
        dropout_attention=settings.rate("attention_dropout", 0.0),
    )


def write(model: schema.Model) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "word_embed_proj_dim": model.d_model,
        "num_hidden_layers": model.num_layers,
        "ffn_dim": model.ff_dim,
        "max_position_embeddings": model.seq_len,
        "num_attention_heads": model.num_heads,
        "activation_function": WRITTEN_GELU.get(model.activation),
        "dropout": model.dropout_hidden,
        "attention_dropout": model.dropout_attention,
        "do_layer_norm_before": True,
        "enable_bias": model.bias_qkv,
        "init_std": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def tensors(model: schema.Model) -> tuple[Tensor, ...]:
    layer = "model.decoder.layers.{layer}."
    found = [
        Tensor("model.decoder.embed_tokens.weight", (Part("embedding/tokens", "V | D"),)),
        Tensor("model.decoder.embed_positions.weight", (Part("embedding/positions", "P | D"),)),
        *norm(f"{layer}self_attn_layer_norm", "attention_norm"),
        *linear(f"{layer}self_attn.q_proj", "attention/query", "H K | D", model.bias_qkv),
        *linear(f"{layer}self_attn.k_proj", "attention/key_value", "G K | D", model.bias_qkv, 0),
        *linear(f"{layer}self_attn.v_proj", "attention/key_value", "G K | D", model.bias_qkv, 1),
        *linear(f"{layer}self_attn.out_proj", "attention/output", "D | H K", model.bias_attention_output),
        *norm(f"{layer}final_layer_norm", "mlp_norm"),
        *linear(f"{layer}fc1", "mlp/up", "F | D", model.bias_mlp),
        *linear(f"{layer}fc2", "mlp/down", "D | F", model.bias_mlp),
        *norm("model.decoder.final_layer_norm", "final_norm"),
    ]
    if not model.tie_embeddings:
        found.append(Tensor("lm_head.weight", (Part("head/kernel", "V | D"),)))
    return tuple(found)
