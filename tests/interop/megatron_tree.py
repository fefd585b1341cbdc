"""A Megatron-LM checkpoint as numpy arrays, parted from our parameters head by head and row by row: nothing of the importer is used."""

from typing import NamedTuple

import numpy as np

from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.model import count

N, D, V, ROWS = 4, 16, 21, 24  # ROWS of the embedding in the checkpoint, those beyond V filled with noise
OLD = schema.Model(num_layers=N, d_model=D, num_heads=4, vocab_size=V, seq_len=8)
GATED = schema.Model(num_layers=N, d_model=D, num_heads=4, d_ff=24, vocab_size=V, seq_len=8, activation="swiglu")
GROUPED = schema.Model(
    num_layers=N,
    d_model=D,
    num_heads=8,
    num_kv_heads=4,
    head_dim=6,
    d_ff=20,
    vocab_size=V,
    seq_len=8,
    position="rope",
    rope_theta=500000.0,
    norm="rmsnorm",
    activation="swiglu",
    bias_qkv=True,
    bias_attention_output=False,
    bias_mlp=False,
    bias_norm=False,
    qk_norm=True,
    tie_embeddings=False,
)
LEGACY = {
    "layer": "language_model.encoder.layers.",
    "attention_norm": "input_layernorm",
    "query_key_value": "self_attention.query_key_value",
    "output": "self_attention.dense",
    "mlp_norm": "post_attention_layernorm",
    "up": "mlp.dense_h_to_4h",
    "down": "mlp.dense_4h_to_h",
    "final_norm": "language_model.encoder.final_layernorm",
    "embedding": "language_model.embedding.",
    "head": "language_model.output_layer.weight",
    "copy": "word_embeddings_for_head.weight",
}
OLDEST = LEGACY | {
    "layer": "language_model.transformer.layers.",
    "query_key_value": "attention.query_key_value",
    "output": "attention.dense",
    "final_norm": "language_model.transformer.final_layernorm",
}
CORE = {
    "layer": "decoder.layers.",
    "attention_norm": "input_layernorm",
    "query_key_value": "self_attention.linear_qkv",
    "output": "self_attention.linear_proj",
    "mlp_norm": "pre_mlp_layernorm",
    "up": "mlp.linear_fc1",
    "down": "mlp.linear_fc2",
    "final_norm": "decoder.final_layernorm",
    "embedding": "embedding.",
    "head": "output_layer.weight",
    "copy": "output_layer.weight",
}


class Tree(NamedTuple):
    """What a checkpoint is like."""

    model: schema.Model
    names: dict[str, str]
    version: float
    ranks: int
    stages: int
    virtual: int = 1


def args_of(tree: Tree) -> dict:
    """What Megatron-LM keeps in `args`: the oldest ones had few settings."""
    model = tree.model
    args = {
        "num_layers": model.num_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.num_heads,
        "max_position_embeddings": model.seq_len,
        "padded_vocab_size": ROWS,
        "tensor_model_parallel_size": tree.ranks,
        "pipeline_model_parallel_size": tree.stages,
    }
    if model.activation == "swiglu":
        args |= {"swiglu": True, "ffn_hidden_size": model.ff_dim}
    if model.norm == "rmsnorm":
        args |= {
            "kv_channels": model.heads[2],
            "group_query_attention": True,
            "num_query_groups": model.heads[1],
            "position_embedding_type": "rope",
            "rotary_base": 500000,
            "normalization": "RMSNorm",
            "norm_epsilon": 1e-5,
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "qk_layernorm": True,
            "untie_embeddings_and_output_weights": True,
        }
    return args


def random_params(model: schema.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Our parameters by their paths; rows of the vocabulary's padding are zeros."""
    chance = np.random.default_rng(seed)
    params = {path: chance.standard_normal(leaf.shape, np.float32) for path, leaf in by_path(count.abstract_params(model)).items()}
    params["embedding/tokens"][model.vocab_size :] = 0
    if "head/kernel" in params:
        params["head/kernel"][:, model.vocab_size :] = 0
    return params


def parted(params: dict[str, np.ndarray], tree: Tree) -> dict[tuple[int, int], list[dict[str, np.ndarray]]]:
    """{(tensor rank, stage): its virtual stages}: chunk v of stage s has layers v*(N/C) + s*(N/(C*P)) and those behind it."""
    per_part = tree.model.num_layers // (tree.stages * tree.virtual)
    ranks = {}
    for rank in range(tree.ranks):
        for stage in range(tree.stages):
            parts = []
            for virtual in range(tree.virtual):
                part = {}
                first = virtual * (tree.model.num_layers // tree.virtual) + stage * per_part
                for number in range(per_part):
                    part |= _layer(params, tree, first + number, number, rank)
                if stage == 0 and virtual == 0:
                    part |= _first(params, tree, rank)
                if stage == tree.stages - 1 and virtual == tree.virtual - 1:
                    part |= _last(params, tree, rank, again=(stage, virtual) != (0, 0))
                parts.append(part)
            ranks[rank, stage] = parts
    return ranks


def _vocabulary(rows_VD: np.ndarray, tree: Tree, rank: int) -> np.ndarray:
    noise = np.random.default_rng(9).standard_normal((ROWS, D), np.float32)
    noise[:V] = rows_VD[:V]
    return noise[rank * (ROWS // tree.ranks) : (rank + 1) * (ROWS // tree.ranks)]


def _first(params, tree: Tree, rank: int) -> dict[str, np.ndarray]:
    found = {f"{tree.names['embedding']}word_embeddings.weight": _vocabulary(params["embedding/tokens"], tree, rank)}
    if "embedding/positions" in params:
        found[f"{tree.names['embedding']}position_embeddings.weight"] = params["embedding/positions"].copy()
    return found


def _last(params, tree: Tree, rank: int, again: bool) -> dict[str, np.ndarray]:
    found = {f"{tree.names['final_norm']}.weight": params["final_norm/scale"].copy()}
    if "final_norm/bias" in params:
        found[f"{tree.names['final_norm']}.bias"] = params["final_norm/bias"].copy()
    if "head/kernel" in params:
        found[tree.names["head"]] = _vocabulary(params["head/kernel"].T, tree, rank)
    elif again:
        found[tree.names["copy"]] = _vocabulary(params["embedding/tokens"], tree, rank)
    return found


def _layer(params, tree: Tree, layer: int, number: int, rank: int) -> dict[str, np.ndarray]:
    """One layer on one rank, under the number that it has there."""
    own = {path.removeprefix("blocks/"): leaf[layer] for path, leaf in params.items() if path.startswith("blocks/")}
    ff_dim = tree.model.ff_dim
    columns = range(rank * ff_dim // tree.ranks, (rank + 1) * ff_dim // tree.ranks)
    heads = range(rank * tree.model.num_heads // tree.ranks, (rank + 1) * tree.model.num_heads // tree.ranks)
    found = {}
    for norm in ("attention_norm", "mlp_norm"):
        found[f"{norm}.weight"] = own[f"{norm}/scale"].copy()
        if f"{norm}/bias" in own:
            found[f"{norm}.bias"] = own[f"{norm}/bias"].copy()
    for kind, end in (("kernel", "weight"), ("bias", "bias")):
        if f"attention/query/{kind}" in own:
            found[f"query_key_value.{end}"] = _query_key_value(own, kind, tree, heads)
    if "attention/query_norm/scale" in own:
        found["q_norm.weight"], found["k_norm.weight"] = own["attention/query_norm/scale"], own["attention/key_norm/scale"]
    found["output.weight"] = np.concatenate([own["attention/output/kernel"][head] for head in heads]).T.copy()
    maps = ["mlp/gate", "mlp/up"] if "mlp/gate/kernel" in own else ["mlp/up"]
    found["up.weight"] = np.stack([own[f"{name}/kernel"][:, column] for name in maps for column in columns])
    if "mlp/up/bias" in own:
        found["up.bias"] = np.stack([own[f"{name}/bias"][column] for name in maps for column in columns])
    found["down.weight"] = np.stack([own["mlp/down/kernel"][column] for column in columns], 1)
    for name, path in (("output", "attention/output/bias"), ("down", "mlp/down/bias")):
        if path in own:
            found[f"{name}.bias"] = own[path].copy()
    theirs = tree.names | {"q_norm": "self_attention.q_layernorm", "k_norm": "self_attention.k_layernorm"}
    return {f"{theirs['layer']}{number}.{theirs[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in found.items()}


def _query_key_value(own, kind: str, tree: Tree, heads: range) -> np.ndarray:
    """Rows of a rank's heads, each [D], or [] for a bias, in the order of the version."""
    per_group = tree.model.num_heads // tree.model.heads[1]

    def rows(what: str, head: int) -> list[np.ndarray]:
        if what == "query":
            block = own[f"attention/query/{kind}"][..., head, :]
        else:
            block = own[f"attention/key_value/{kind}"][..., head // per_group, ("key", "value").index(what), :]
        return [block[..., dim] for dim in range(tree.model.heads[2])]

    whats = ("query", "key", "value")
    if tree.version == 0:
        found = [row for what in whats for head in heads for row in rows(what, head)]
    elif tree.version == 1.0:
        found = [row for head in heads for three in zip(*(rows(what, head) for what in whats), strict=True) for row in three]
    else:
        found = []
        for first in heads[::per_group]:
            found += [row for head in range(first, first + per_group) for row in rows("query", head)]
            found += [row for what in whats[1:] for row in rows(what, first)]
    return np.stack(found)
