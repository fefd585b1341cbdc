"""Weights to read, whatever keeps them: a run's checkpoint, or a model of another project."""

import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from mtnlg import checkpoint, layered
from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError
from mtnlg.core.tree import by_path
from mtnlg.interop import huggingface
from mtnlg.interop.layout import BLOCKS, Key
from mtnlg.interop.tensors import DTYPES
from mtnlg.model import count

KINDS = ("run", "hf")


class Weights(Protocol):
    """dtype: the narrowest that holds every number; architecture: what another project calls it, if it came from there;
    text_folder: where its tokenizer lies."""

    where: str
    model: schema.Model
    dtype: np.dtype
    architecture: str | None
    text_folder: pathlib.Path | None

    def read(self, key: Key, index: tuple[slice, ...] = (), dtype=None) -> np.ndarray:
        """A slice of one layer of a parameter, in our order of axes."""


class RunWeights:
    """The weights of a run's checkpoint. Raises MissingInput, DataError (damaged, or of another version)."""

    def __init__(self, path: str | os.PathLike):
        step_dir = checkpoint.find(path)
        checkpoint.require_good(step_dir)
        self.where, self.meta = str(step_dir), checkpoint.meta(step_dir)
        self.config = config_of(self.meta, step_dir)
        self.model, self.architecture = self.config.model, self.meta.get("architecture")
        self.dtype = DTYPES[self.meta.get("dtype", "float32")]
        self.text_folder = step_dir.parent.parent / "tokenizer"
        self._reader = layered.LayerReader(step_dir)

    def read(self, key: Key, index: tuple[slice, ...] = (), dtype=None) -> np.ndarray:
        rows = self._reader.read(key.path, key.layer, index[0] if index else slice(None))
        return rows[(slice(None), *index[1:])].astype(dtype or rows.dtype, copy=False)


def config_of(meta: dict, step_dir: pathlib.Path) -> schema.Config:
    """The config in a checkpoint's meta. Raises DataError when it is another version's."""
    try:
        return configs.from_flat(configs.flatten(meta["config"]))
    except ConfigError as error:
        what = f"config of another version of mtnlg: {error.what}"
        raise DataError(what, str(step_dir), "the version of mtnlg that the run's environment.json names") from None


def kind_of(path: str | os.PathLike) -> str:
    """What lies there: one of KINDS; a folder that looks like nothing else is taken for a run."""
    return (
        "hf"
        if (pathlib.Path(path) / "model.safetensors.index.json").is_file() or (pathlib.Path(path) / "model.safetensors").is_file()
        else "run"
    )


def open_weights(path: str | os.PathLike, kind: str | None = None) -> Weights:
    """kind: one of KINDS; None: what lies there says it. Raises MissingInput, DataError, ConfigError."""
    return {"run": RunWeights, "hf": huggingface.open_folder}[kind or kind_of(path)](path)


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
    rows = layered.rows_at_once(shape, 4)
    for start in range(0, shape[0], rows):
        yield start, weights.read(key, (slice(start, min(start + rows, shape[0])),))
