"""Megatron-LM's names of a GPT's tensors, legacy and core, as one set: core's of the local spec, with the layers of the whole model."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
NO_WEIGHTS = ("_extra_state", ".inv_freq")
_LAYER = re.compile(r"^decoder\.layers\.(\d{1,6})\.")
_FUSED = (("input_layernorm.", "self_attention.linear_qkv.layer_norm_"), ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"))
_RENAMES = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^language_model\.", ""),
        (r"^(?:encoder|transformer)\.layers\.", "decoder.layers."),
        (r"^(?:encoder|transformer|decoder)\.final_(?:layer)?norm\.", "decoder.final_layernorm."),
        (r"^word_embeddings_for_head\.", "output_layer."),
        (r"(\.\d+)\.(?:self_)?attention\.query_key_value\.", r"\1.self_attention.linear_qkv."),
        (r"(\.\d+)\.(?:self_)?attention\.dense\.", r"\1.self_attention.linear_proj."),
        (r"(\.\d+)\.mlp\.dense_h_to_4h\.", r"\1.mlp.linear_fc1."),
        (r"(\.\d+)\.mlp\.dense_4h_to_h\.", r"\1.mlp.linear_fc2."),
        (r"(\.\d+)\.input_norm\.", r"\1.input_layernorm."),
        (r"(\.\d+)\.post_attention_(?:layer)?norm\.", r"\1.pre_mlp_layernorm."),
        *((rf"(\.\d+)\.{re.escape(fused)}", rf"\1.{alone}") for alone, fused in _FUSED),
    )
]


def flat(model: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of every leaf of nested dicts that may hold weights. A dict that is there twice, or in itself, counts once."""
    todo, seen = [("", model)], set()
    while todo:
        prefix, inside = todo.pop()
        if id(inside) in seen:
            continue
        seen.add(id(inside))
        for key, value in inside.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                todo.append((f"{name}.", value))
            elif not name.endswith(NO_WEIGHTS):
                yield name, value


def plain(name: str) -> str:
    """The one name of a tensor; its layer is still that of its part of the model."""
    for pattern, into in _RENAMES:
        name = pattern.sub(into, name)
    return name


def num_layers(names: Iterable[str]) -> int:
    """Layers of a part of the model, by its plain names."""
    return max((int(found[1]) + 1 for found in map(_LAYER.match, names) if found), default=0)


def moved(name: str, num_before: int) -> str:
    """The plain name with the layer counted from the model's first one. num_before: layers of the parts before."""
    return _LAYER.sub(lambda found: f"decoder.layers.{int(found[1]) + num_before}.", name)


def fused(name: str) -> str:
    """What TransformerEngine's spec calls a tensor with a plain name: its norms lie in the maps behind them."""
    for alone, inside in _FUSED:
        name = name.replace(f".{alone}", f".{inside}")
    return name
