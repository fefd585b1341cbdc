"""GPT-2 (transformers' modeling_gpt2.py): learned positions, one tensor for query, key and value; Conv1D kernels are [in, out]."""

from typing import Any

from mtnlg.core import schema
from mtnlg.interop.layout import Part, Tensor, linear, norm
from mtnlg.interop.settings import GELU, WRITTEN_GELU, Settings


def read(settings: Settings) -> schema.Model:
    """config.json of GPT2LMHeadModel."""
    settings.require("scale_attn_weights", True, "scores are divided by the root of a head's width")
    settings.require("scale_attn_by_inverse_layer_idx", False, "scores are not divided by the layer's number")
    settings.require("add_cross_attention", False, "there is no encoder to look at")
    dropout = settings.rate("resid_pdrop", 0.1)
    if settings.rate("embd_pdrop", 0.1) != dropout:
        settings.refuse("embd_pdrop", f"the embedding has the dropout of the blocks, and resid_pdrop is {dropout}")
    return schema.Model(
        num_layers=settings.count("n_layer", 12),
        d_model=settings.count("n_embd", 768),
        num_heads=settings.count("n_head", 12),
        d_ff=settings.maybe_count("n_inner"),
        vocab_size=settings.count("vocab_size", 50257),
        seq_len=settings.count("n_positions", 1024),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=settings.word("activation_function", "gelu_new", GELU),
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        init_std=settings.number("initializer_range", 0.02),
        dropout_hidden=dropout,
        dropout_attention=settings.rate("attn_pdrop", 0.1),
    )


def write(model: schema.Model) -> dict[str, Any]:
    return {
        "vocab_size": model.vocab_size,
        "n_positions": model.seq_len,
        "n_embd": model.d_model,
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_inner": model.ff_dim,
        "activation_function": WRITTEN_GELU.get(model.activation),
        "resid_pdrop": model.dropout_hidden,
        "embd_pdrop": model.dropout_hidden,
        "attn_pdrop": model.dropout_attention,
        "layer_norm_epsilon": model.norm_eps,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
    }


def tensors(model: schema.Model) -> tuple[Tensor, ...]:
    layer = "transformer.h.{layer}."
    query_key_value = [("attention/query", "1 H K", None), ("attention/key_value", "1 G K", 0), ("attention/key_value", "1 G K", 1)]
    found = [
        Tensor("transformer.wte.weight", (Part("embedding/tokens", "V | D"),)),
        Tensor("transformer.wpe.weight", (Part("embedding/positions", "P | D"),)),
        *norm(f"{layer}ln_1", "attention_norm"),
        Tensor(f"{layer}attn.c_attn.weight", tuple(Part(f"{path}/kernel", f"D | {out}", which) for path, out, which in query_key_value), 1),
        Tensor(f"{layer}attn.c_attn.bias", tuple(Part(f"{path}/bias", out, which) for path, out, which in query_key_value)),
        *linear(f"{layer}attn.c_proj", "attention/output", "H K | D"),
        *norm(f"{layer}ln_2", "mlp_norm"),
        *linear(f"{layer}mlp.c_fc", "mlp/up", "D | F"),
        *linear(f"{layer}mlp.c_proj", "mlp/down", "F | D"),
        *norm("transformer.ln_f", "final_norm"),
    ]
    if not model.tie_embeddings:
        found.append(Tensor("lm_head.weight", (Part("head/kernel", "V | D"),)))
    return tuple(found)
