"""Megatron-LM's checkpoints of a GPT, as `--ckpt-format torch` writes them, in and out.

    ROOT/latest_checkpointed_iteration.txt    "1000", or "release"
    ROOT/iter_0001000/mp_rank_TT/model_optim_rng.pt          ROOT/release/...
    ROOT/iter_0001000/mp_rank_TT_PPP/model_optim_rng.pt      with pipeline stages

T counts tensor ranks, P stages; each file has its part of the tensors, optimizer states that are left alone, and `args`.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtnlg.core import files, schema, validate
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.interop import megatron_args, megatron_file, megatron_ranks, megatron_shards
from mtnlg.interop.foreign import Foreign
from mtnlg.interop.huggingface import essential
from mtnlg.interop.layout import Layout, Part, Tensor, linear, name_of, norm
from mtnlg.interop.megatron_names import EMBEDDING, HEAD, flat, fused
from mtnlg.interop.megatron_ranks import FILE, RELEASE, TRACKER, WHOLE, Parts, Rank
from mtnlg.interop.megatron_shards import VERSIONS, Rows
from mtnlg.interop.settings import Settings
from mtnlg.interop.tensors import problems, refuse

ARCHITECTURE = "Megatron-LM"
VOCAB_MULTIPLE = 128  # rows of a rank's embedding, by default (make_vocab_size_divisible_by)
NAMED_BY = "OUT"
IMPLS = ("transformer_engine", "local")  # Megatron-LM's --transformer-impl, the first its default


def tensors(model: schema.Model) -> tuple[Tensor, ...]:
    """Core's names and the row order of version 2.0 and later."""
    layer = "decoder.layers.{layer}."
    attention, mlp = f"{layer}self_attention.", f"{layer}mlp."
    query_key_value = [("attention/query", "G R K", None), ("attention/key_value", "G 1 K", 0), ("attention/key_value", "G 1 K", 1)]
    columns = ("mlp/gate", "mlp/up") if model.activation == "swiglu" else ("mlp/up",)
    found = [Tensor(EMBEDDING, (Part("embedding/tokens", "V | D"),))]
    if model.position == "learned":
        found.append(Tensor("embedding.position_embeddings.weight", (Part("embedding/positions", "P | D"),)))
    found += norm(f"{layer}input_layernorm", "attention_norm", model.bias_norm)
    weight = tuple(Part(f"{path}/kernel", f"{rows} | D", which) for path, rows, which in query_key_value)
    found.append(Tensor(f"{attention}linear_qkv.weight", weight, 1))
    if model.bias_qkv:
        bias = tuple(Part(f"{path}/bias", rows, which) for path, rows, which in query_key_value)
        found.append(Tensor(f"{attention}linear_qkv.bias", bias, 1))
    if model.qk_norm:
        found += norm(f"{attention}q_layernorm", "attention/query_norm", False)
        found += norm(f"{attention}k_layernorm", "attention/key_norm", False)
    found += linear(f"{attention}linear_proj", "attention/output", "D | H K", model.bias_attention_output)
    found += norm(f"{layer}pre_mlp_layernorm", "mlp_norm", model.bias_norm)
    found.append(Tensor(f"{mlp}linear_fc1.weight", tuple(Part(f"{path}/kernel", "F | D") for path in columns)))
    if model.bias_mlp:
        found.append(Tensor(f"{mlp}linear_fc1.bias", tuple(Part(f"{path}/bias", "F") for path in columns)))
    found += linear(f"{mlp}linear_fc2", "mlp/down", "D | F", model.bias_mlp)
    found += norm("decoder.final_layernorm", "final_norm", model.bias_norm)
    if not model.tie_embeddings:
        found.append(Tensor(HEAD, (Part("head/kernel", "V | D"),)))
    return tuple(found)


def open_folder(path: str | os.PathLike, vocab_size: int | None = None) -> Foreign:
    """The model of a checkpoint, of its tensors only the checksums read. path: the root, or the folder of one iteration.

    vocab_size: ids of the tokenizer, which the files do not say; None: every row of the padded embedding is an id.
    Raises MissingInput, DataError (with a line for each setting that cannot be honoured, and for each tensor that does not fit),
    ConfigError (torch is not installed).
    """
    folder = megatron_ranks.find(path)
    opened = {rank: megatron_file.File(file) for rank, file in megatron_ranks.files_of(folder).items()}
    states = {rank: file.state for rank, file in opened.items()}
    where = str(folder)
    args = states[0, 0].get("args")
    if not isinstance(args, megatron_file.StandIn):
        what = "has no args, which say what model it is: an old release, or a file of another project"
        raise DataError(what, where, "a checkpoint that Megatron-LM's training has saved")
    versions = {repr(state.get("checkpoint_version", 0))[:40] for state in states.values()}
    if len(versions) > 1:
        raise DataError(f"ranks have checkpoint versions {', '.join(sorted(versions))}", where, "files of one checkpoint")
    ranks = {rank: _parts(file) for rank, file in opened.items()}
    return assemble(megatron_file.plain(args), states[0, 0].get("checkpoint_version", 0), ranks, where, vocab_size)


def _parts(file: megatron_file.File) -> Parts:
    """The virtual stages of a rank, or the one that it has."""
    state, where = file.state, str(file.path)
    virtual = sorted((key for key in state if isinstance(key, str) and re.fullmatch(r"model\d{1,4}", key)), key=lambda key: int(key[5:]))
    models = [state.get(key) for key in virtual or ["model"]]
    if not all(isinstance(model, dict) for model in models) or virtual != [f"model{number}" for number in range(len(virtual))]:
        raise DataError("has no model, or not all of its virtual stages", where, WHOLE)
    return [{name: file.array(value, name) for name, value in flat(model)} for model in models]


def assemble(args: Mapping[str, Any], version: float, ranks: Mapping[Rank, Parts], where: str, vocab_size: int | None = None) -> Foreign:
    """The model whose parts these are, as numpy arrays; version: `checkpoint_version`. Raises DataError."""
    if type(version) not in (int, float) or version not in VERSIONS:
        raise DataError(f"checkpoint version {repr(version)[:40]} is not known", where, f"one of {', '.join(map(str, VERSIONS))}")
    parts, num_layers = megatron_ranks.gather(ranks, where)
    if EMBEDDING not in parts or parts[EMBEDDING][0].ndim != 2:
        raise DataError(f"has no matrix {EMBEDDING}: not a GPT's, or its first stage is missing", where, "a GPT's whole checkpoint")
    num_ids = len(parts[EMBEDDING]) * len(parts[EMBEDDING][0])
    settings = Settings(dict(args))
    settings.require("num_layers", num_layers, f"{num_layers} are there")
    settings.require("padded_vocab_size", num_ids, f"the embedding has {num_ids} rows")
    settings.require("tensor_model_parallel_size", max(rank for rank, _ in ranks) + 1, "there are not as many tensor ranks")
    settings.require("pipeline_model_parallel_size", max(stage for _, stage in ranks) + 1, "there are not as many pipeline stages")
    if vocab_size is not None and not 0 < vocab_size <= num_ids:
        settings.problems.append(f"a vocabulary of {vocab_size} is wanted, and the embedding has {num_ids} rows")
    try:
        model = megatron_args.read(settings, num_ids, vocab_size)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise DataError(f"args cannot be understood: {error}", where, "a checkpoint that Megatron-LM has saved") from None
    if version < 2 and model.num_kv_heads != model.num_heads:
        settings.refuse("num_query_groups", f"checkpoint version {version} has as many groups as heads")
    refuse(settings.problems, "cannot be honoured as its args have it", where, "a model without these settings")
    refuse(validate.model_problems(dataclasses.replace(schema.Config(), model=model)), "its args contradict themselves", where, WHOLE)
    rows = Rows(version, model.heads[2], model.activation == "swiglu")
    sharded = megatron_ranks.Sharded(parts, rows, model.tie_embeddings, where)
    layout = Layout(model, tensors(model), num_ids)
    stored = sharded.stored()
    refuse(problems(stored, layout.shapes()), "not the tensors of its args", where, WHOLE)
    dtype = functools.reduce(np.promote_types, {stored[name].dtype for name in layout.shapes()})
    return Foreign(model, layout, sharded, dtype, ARCHITECTURE, None)


def layout_for(model: schema.Model, num_ranks: int, num_stages: int) -> Layout:
    """How Megatron-LM has a model on tensor ranks and stages. Raises ConfigError, with a line for each thing that it cannot have."""
    said = Settings({key: value for key, value in megatron_args.write(model).items() if value is not None})
    num_ids = -(-model.vocab_size // (VOCAB_MULTIPLE * num_ranks)) * VOCAB_MULTIPLE * num_ranks
    back = dataclasses.asdict(essential(megatron_args.read(said, num_ids, model.vocab_size)))
    lines = [f"model.{key}={value}, there {back[key]}" for key, value in dataclasses.asdict(essential(model)).items() if back[key] != value]
    lines += said.problems
    for name, size in (("heads", model.num_heads), ("key/value heads", model.heads[1]), ("feed-forward columns", model.ff_dim)):
        if size % num_ranks:
            lines.append(f"{size} {name} do not divide by {num_ranks} tensor ranks")
    if model.num_layers % num_stages:
        lines.append(f"{model.num_layers} layers do not divide by {num_stages} pipeline stages")
    if lines:
        told = "\n".join(f"  - {line}" for line in lines)
        raise ConfigError(f"Megatron-LM cannot have all of this model; it differs in\n{told}\n", "--to=megatron", "--to=run or --to=hf")
    return Layout(model, tensors(model), num_ids)


def parts(
    layout: Layout,
    read: Callable[[Tensor, int | None], np.ndarray],
    num_ranks: int = 1,
    num_stages: int = 1,
    transformer_impl: str = IMPLS[0],
) -> dict[str, Callable[[pathlib.Path], None]]:
    """{path under the root: writes it}, of ROOT/release: weights alone, which Megatron-LM takes as a start. `finish` comes last.

    layout: of `layout_for`; read: a whole tensor of it, in the dtype that is to be written. A rank's part is in memory at a time.
    transformer_impl: one of IMPLS, by whose names; Megatron-LM must run with the same one, or it starts with other norms.
    Writing raises CannotWrite, TemporaryFailure, ConfigError (torch is not installed).
    """
    model = layout.model
    args = megatron_args.write(model) | {
        "padded_vocab_size": layout.num_ids,
        "make_vocab_size_divisible_by": VOCAB_MULTIPLE,
        "tensor_model_parallel_size": num_ranks,
        "pipeline_model_parallel_size": num_stages,
        "virtual_pipeline_model_parallel_size": None,
        "transformer_impl": transformer_impl,
        "ckpt_format": "torch",
    }

    called = dict(zip(IMPLS, (fused, str), strict=True))[transformer_impl]

    def save(path: pathlib.Path, rank: int, stage: int) -> None:
        part = functools.partial(megatron_shards.split, rank=rank, num_ranks=num_ranks, gated=model.activation == "swiglu")
        arrays = {called(name): part(name, read(tensor, layer)) for name, tensor, layer in _held(layout, stage, num_stages)}
        megatron_file.save(path, args, arrays, NAMED_BY)

    ranks = [(rank, stage) for stage in range(num_stages) for rank in range(num_ranks)]
    names = [f"{RELEASE}/{megatron_ranks.rank_folder(one, num_stages)}/{FILE}" for one in ranks]
    return {name: functools.partial(save, rank=rank, stage=stage) for name, (rank, stage) in zip(names, ranks, strict=True)}


def finish(root: pathlib.Path) -> None:
    """Writes the tracker, without which nothing is there. Raises CannotWrite, TemporaryFailure."""
    files.write_atomic(root / TRACKER, RELEASE, NAMED_BY)


def _held(layout: Layout, stage: int, num_stages: int):
    """(name in the file, tensor, layer of the model) of what a stage has; the last one has a tied embedding again."""
    per_stage = layout.model.num_layers // num_stages
    for tensor, layer in layout.names():
        if tensor.in_layers:
            if layer // per_stage == stage:
                yield name_of(tensor, layer % per_stage), tensor, layer
        elif tensor.name.startswith("embedding."):
            if stage == 0:
                yield tensor.name, tensor, None
            if stage == num_stages - 1 > 0 and tensor.name == EMBEDDING and layout.model.tie_embeddings:
                yield HEAD, tensor, None
        elif stage == num_stages - 1:
            yield tensor.name, tensor, None
