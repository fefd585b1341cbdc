"""Where the weights and the tokenizer of a trained model come from."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from mtnlg import checkpoint
from mtnlg import weights as sources
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.core.tree import map_with_path
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.interop.foreign import Foreign
from mtnlg.model import count, transformer
from mtnlg.parallel import arrangement
from mtnlg.weights import RunWeights


class Model(NamedTuple):
    """load_params: (config, mesh) -> the weights, arranged and in the compute dtype, which they get on their way from the disk."""

    where: str
    config: schema.Config
    tokenizer: Tokenizer
    load_params: Callable


def open_model(path: str | os.PathLike, tokenizer: str | os.PathLike | None = None) -> Model:
    """A run (its newest checkpoint), one of its `checkpoints/STEP`, or another project's model: whatever `weights.open_weights` takes.

    tokenizer: a path; None: the one that came with the weights. Raises MissingInput (no weights or tokenizer there) or DataError
    (damaged, of another version, or the tokenizer is not the one trained with).
    """
    weights = sources.open_weights(path)
    if not isinstance(weights, RunWeights):
        return Model(
            weights.where, sources.config_of(weights), sources.tokenizer_of(weights, tokenizer), functools.partial(load_foreign, weights)
        )
    folder = weights.text_folder
    if tokenizer is None and not folder.exists():
        raise MissingInput("the run has no tokenizer", str(folder), "the folder that training made, whole")
    text = sources.tokenizer_of(weights, tokenizer)
    if text.sha256 != weights.meta["tokenizer_sha256"]:
        where = str(tokenizer or folder)
        raise DataError("the tokenizer is not the one the model was trained with", where, "the run's own tokenizer/")

    def load(config: schema.Config, mesh):
        return load_params(pathlib.Path(weights.where), config, mesh, config.train.compute_dtype)

    return Model(weights.where, weights.config, text, load)


def load_foreign(foreign: Foreign, config: schema.Config, mesh):
    """Each device reads what it holds, of the files only that."""
    dtype = jax.numpy.dtype(config.train.compute_dtype)
    shapes = count.abstract_params(config.model)

    def place(path: str, leaf, sharding):
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: foreign.read_stacked(path, index, dtype))

    return arrangement.arranged(config, mesh, map_with_path(place, shapes, arrangement.canonical_shardings(config, mesh, shapes)))


def require_run(path: str) -> None:
    """Before anything long is begun for it. Raises MissingInput (nothing is there), ConfigError (another project's model)."""
    try:
        kind = sources.kind_of(path)
    except MissingInput as error:
        cure = "--config.init.from=RUN, the folder of a run or one of its checkpoints/STEP"
        raise MissingInput(error.what, f"init.from={path}", cure) from None
    if kind != "run":
        cure = f"python -m mtnlg convert --to=run {path} RUN, then --config.init.from=RUN"
        raise ConfigError(f"training starts from runs, and this is of the kind {kind}: {path}", "--config.init.from", cure)


def load_params(step_dir: pathlib.Path, config: schema.Config, mesh, dtype: str | None = None):
    """The weights of a checkpoint, arranged and in their storage sharding on the mesh. dtype: to become; None: train.param_dtype.

    Raises ConfigError (float64 without 64-bit mode), DataError (of another model).
    """
    shapes = jax.eval_shape(lambda: transformer.init(config.model, jax.random.key(0), jax.numpy.dtype(config.train.param_dtype)))
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    abstract = jax.tree.map(place, shapes, arrangement.canonical_shardings(config, mesh, shapes))
    return arrangement.arranged(config, mesh, checkpoint.load(step_dir, "params", abstract, config, dtype))
