"""GPT-NeoX and Pythia (transformers' modeling_gpt_neox.py): a part of each head rotates, both halves of a block read the same input,
query, key and value of a head lie together."""

from typing import Any

from mtnlg.core import schema
from mtnlg.interop.layout import Part, Tensor, linear, norm
from mtnlg.interop.settings import GELU, WRITTEN_GELU, Settings, written_rope


def read(settings: Settings) -> schema.Model:
    """config.json of GPTNeoXForCausalLM."""
    biases = settings.flag("attention_bias", True)
    return schema.Model(
        num_layers=settings.count("num_hidden_layers"),
        d_model=settings.count("hidden_size"),
        num_heads=settings.count("num_attention_heads"),
        d_ff=settings.count("intermediate_size"),
        vocab_size=settings.count("vocab_size"),
        seq_len=settings.count("max_position_embeddings", 2048),
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        activation=settings.word("hidden_act", "gelu", GELU),
        bias_qkv=biases,
        bias_attention_output=biases,
        parallel_residual=settings.flag("use_parallel_residual", True),
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        init_std=settings.number("initializer_range", 0.02),
        dropout_hidden=settings.rate("hidden_dropout", 0.0),
        dropout_attention=settings.rate("attention_dropout", 0.0),
        **settings.rope("rotary_emb_base", "rotary_pct", 0.25),
    )


def write(model: schema.Model) -> dict[str, Any]:
    rope = written_rope(model)
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.ff_dim,
        "hidden_act": WRITTEN_GELU.get(model.activation),
        "attention_dropout": model.dropout_attention,
        "hidden_dropout": model.dropout_hidden,
        "max_position_embeddings": model.seq_len,
        "initializer_range": model.init_std,
        "layer_norm_eps": model.norm_eps,
        "rotary_pct": model.rope_fraction,
        "rotary_emb_base": rope["rope_theta"],
        "rope_scaling": rope["rope_scaling"],
        "use_parallel_residual": model.parallel_residual,
        "attention_bias": model.bias_qkv,
        "tie_word_embeddings": model.tie_embeddings,
    }


def tensors(model: schema.Model) -> tuple[Tensor, ...]:
    layer = "gpt_neox.layers.{layer}."
    query_key_value = [("attention/query", "H 1 K", None), ("attention/key_value", "G 1 K", 0), ("attention/key_value", "G 1 K", 1)]
    weight = tuple(Part(f"{path}/kernel", f"{out} | D", which) for path, out, which in query_key_value)
    found = [Tensor("gpt_neox.embed_in.weight", (Part("embedding/tokens", "V | D"),)), *norm(f"{layer}input_layernorm", "attention_norm")]
    found.append(Tensor(f"{layer}attention.query_key_value.weight", weight, 1))
    if model.bias_qkv:
        bias = tuple(Part(f"{path}/bias", out, which) for path, out, which in query_key_value)
        found.append(Tensor(f"{layer}attention.query_key_value.bias", bias, 1))
    found += linear(f"{layer}attention.dense", "attention/output", "D | H K", model.bias_attention_output)
    found += norm(f"{layer}post_attention_layernorm", "mlp_norm")
    found += linear(f"{layer}mlp.dense_h_to_4h", "mlp/up", "F | D")
    found += linear(f"{layer}mlp.dense_4h_to_h", "mlp/down", "D | F")
    found += norm("gpt_neox.final_layer_norm", "final_norm")
    if not model.tie_embeddings:
        found.append(Tensor("embed_out.weight", (Part("head/kernel", "V | D"),)))
    return tuple(found)
