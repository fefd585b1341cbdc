"""Weights to read, whatever keeps them: a run's checkpoint, or a model of another project."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from mtnlg import checkpoint, layered
from mtnlg.core import config as configs
from mtnlg.core import manifest, schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.core.tree import by_path
from mtnlg.data import gguf_tokenizer
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.interop import gguf, huggingface
from mtnlg.interop.layout import BLOCKS, Key
from mtnlg.interop.tensors import DTYPES, FLOATS, refuse, rows_at_once
from mtnlg.model import count

# Whose SentencePiece models put <s> before a text where no tokenizer_config.json says otherwise, as transformers' LlamaTokenizer does.
BEGIN_WITH_BOS = ("LlamaForCausalLM", "MistralForCausalLM")
WHAT_IS_READ = "a run, one of its checkpoints/STEP, a folder with config.json and safetensors, a .gguf file or a Megatron-LM checkpoint"
KINDS = ("run", "hf", "gguf", "megatron")


class Weights(Protocol):
    """dtype: the narrowest that holds every number; architecture: what another project calls it, if it came from there.

    text_folder: where its tokenizer lies, or text_fields: the tokenizer, as a GGUF file has it.
    """

    where: str
    model: schema.Model
    dtype: np.dtype
    architecture: str | None
    text_folder: pathlib.Path | None
    text_fields: dict[str, Any] | None

    def read(self, key: Key, index: tuple[slice, ...] = (), dtype=None) -> np.ndarray:
        """A slice of one layer of a parameter, in our order of axes."""


class RunWeights:
    """The weights of a run's checkpoint. Raises MissingInput, DataError (damaged, or of another version)."""

    def __init__(self, path: str | os.PathLike):
        step_dir = checkpoint.find(path)
        checkpoint.require_good(step_dir)
        self.where, self.meta = str(step_dir), checkpoint.meta(step_dir)
        self.config = _stored_config(self.meta, step_dir)
        self.model, self.architecture = self.config.model, self.meta.get("architecture")
        self.dtype = DTYPES.get(self.meta.get("dtype"), DTYPES["float32"])
        self.text_fields, self.text_folder = None, step_dir.parent.parent / "tokenizer"
        self._reader = layered.LayerReader(step_dir)

    def read(self, key: Key, index: tuple[slice, ...] = (), dtype=None) -> np.ndarray:
        rows = self._reader.read(key.path, key.layer, index[0] if index else slice(None))
        return rows[(slice(None), *index[1:])].astype(dtype or rows.dtype, copy=False)


def _stored_config(meta: dict, step_dir: pathlib.Path) -> schema.Config:
    """The config in a checkpoint's meta. Raises DataError when it is another version's."""
    try:
        return configs.from_flat(configs.flatten(meta["config"]))
    except ConfigError as error:
        what = f"config of another version of mtnlg: {error.what}"
        raise DataError(what, str(step_dir), "the version of mtnlg that the run's environment.json names") from None


def kind_of(path: str | os.PathLike) -> str:
    """What lies there, one of KINDS. Raises MissingInput."""
    path = pathlib.Path(path)
    if path.suffix == ".gguf":
        return "gguf"
    if (path / "latest_checkpointed_iteration.txt").is_file() or any(path.glob("mp_rank_*")):
        return "megatron"
    if (path / huggingface.CONFIG).is_file() and any(any(path.glob(f"*{end}")) for end in huggingface.WEIGHT_FILES):
        return "hf"
    if checkpoint.is_here(path):
        return "run"
    if not path.exists():
        raise MissingInput("nothing is there, and nothing is fetched from a hub", str(path), WHAT_IS_READ)
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    beside = path.is_file() and (path.parent / huggingface.CONFIG).is_file()
    raise MissingInput("there is no model", str(path), str(files[0]) if files else f"its folder, {path.parent}" if beside else WHAT_IS_READ)


def open_weights(path: str | os.PathLike, kind: str | None = None, vocab_size: int | None = None) -> Weights:
    """kind: one of KINDS; None: what lies there says it. vocab_size: ids of the model, which Megatron-LM's files do not say.

    Raises MissingInput, DataError (files that differ from the hash list beside them, say), ConfigError (a library is not installed).
    """
    with _readable(path):
        return _open(pathlib.Path(path), kind or kind_of(path), vocab_size)


@contextlib.contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    """Raises MissingInput where the system does not let anything be read."""
    try:
        yield
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise MissingInput(what, str(error.filename or path)[:400], "a path that is there, whose files you may read") from None


def _open(path: pathlib.Path, kind: str, vocab_size: int | None) -> Weights:
    if vocab_size is not None and kind != "megatron":
        raise ConfigError("--vocab_size is only for Megatron-LM's checkpoints", str(path), "the command without it: these weights say it")
    if kind in ("gguf", "megatron"):
        listed = (path / manifest.NAME).is_file()
        differing = manifest.problems(path, _of_megatron) if listed else manifest.changed(path) if path.is_file() else []
        refuse(differing, "files differ from the hash list beside them", str(path), manifest.CURE)
    if kind == "megatron":
        from mtnlg.interop import megatron

        beside = path / "tokenizer"
        return megatron.open_folder(path, vocab_size)._replace(text_folder=beside if beside.is_dir() else None)
    return {"run": RunWeights, "hf": huggingface.open_folder, "gguf": gguf.open_file}[kind](path)


def _of_megatron(name: str) -> bool:
    """Whether a file of a checkpoint of Megatron-LM may be read."""
    return name.endswith(".pt") or name == "latest_checkpointed_iteration.txt" or name.startswith("tokenizer/")


def config_of(weights: Weights) -> schema.Config:
    """The config that a run of these weights has: its own, or one that computes in bfloat16 where the numbers are, else in float32."""
    if isinstance(weights, RunWeights):
        return weights.config
    compute = "bfloat16" if FLOATS.get(weights.dtype) == "bfloat16" else "float32"
    return schema.Config(name=weights.architecture, model=weights.model, train=schema.Train(compute_dtype=compute))


def tokenizer_of(weights: Weights, path: str | os.PathLike | None = None) -> Tokenizer:
    """The tokenizer at `path`; None: the one that came with the weights. Raises MissingInput, DataError (none that fits them)."""
    if path is None and weights.text_folder is None and weights.text_fields is None:
        raise MissingInput("there is no tokenizer with these weights", weights.where, "--tokenizer=PATH")
    if path is None and weights.text_fields is not None:
        tokenizer = gguf_tokenizer.load(weights.text_fields, weights.where)
    else:
        with _readable(path or weights.text_folder):
            tokenizer = tokenizers.load(path or weights.text_folder)
    if weights.architecture in BEGIN_WITH_BOS and not tokenizer.companions.files:
        tokenizer = tokenizers.beginning_with_bos(tokenizer, str(path or weights.text_folder))
    if tokenizer.vocab_size > weights.model.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size} ids, and the model {weights.model.vocab_size}"
        raise DataError(what, str(path or weights.where), "the tokenizer that the model was trained with")
    return tokenizer


def num_params(model: schema.Model) -> int:
    """Parameters, rows of vocabulary padding not counted."""
    return count.num_params(model)


@functools.lru_cache(4)
def shapes(model: schema.Model) -> dict[str, tuple[int, ...]]:
    """{'a/b/c': shape} of every parameter, layers first where there are any."""
    return {path: leaf.shape for path, leaf in by_path(count.abstract_params(model)).items()}


def keys(model: schema.Model) -> list[Key]:
    """Every layer of every parameter, block after block."""
    paths = shapes(model)
    inside = [path for path in paths if path.startswith(BLOCKS)]
    return [Key(path, layer) for layer in range(model.num_layers) for path in inside] + [
        Key(path, None) for path in paths if path not in inside
    ]


def blocks(weights: Weights, key: Key) -> Iterator[tuple[int, np.ndarray]]:
    """(where on the first axis it begins, rows from there on), of one layer of a parameter: never more than a chunk at once."""
    shape = shapes(weights.model)[key.path][key.layer is not None :]
    rows = rows_at_once(shape, 4)
    for start in range(0, shape[0], rows):
        yield start, weights.read(key, (slice(start, min(start + rows, shape[0])),))
