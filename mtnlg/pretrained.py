"""Where the weights and the tokenizer of a trained model come from."""

import os
import pathlib

import jax

from mtnlg import checkpoint
from mtnlg.core import schema
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.data import tokenizer as tokenizers
from mtnlg.model import transformer
from mtnlg.parallel import arrangement
from mtnlg.weights import RunWeights


class RunModel:
    """A run (its newest checkpoint) or one of its `checkpoints/STEP`: its config, its tokenizer, and its weights for any mesh.

    Raises MissingInput (no checkpoint or tokenizer there) or DataError (damaged, of another version, or the tokenizer is not the one
    trained with).
    """

    def __init__(self, path: str | os.PathLike):
        weights = RunWeights(path)
        self.where, self.config, folder = weights.where, weights.config, weights.text_folder
        if not folder.exists():
            raise MissingInput("the run has no tokenizer", str(folder), "the folder that training made, whole")
        self.tokenizer = tokenizers.load(folder)
        if self.tokenizer.sha256 != weights.meta["tokenizer_sha256"]:
            raise DataError("the tokenizer is not the one the model was trained with", str(folder), "the run's own tokenizer/")

    def load_params(self, config: schema.Config, mesh):
        """The weights in the compute dtype, which they get on their way from the disk."""
        return load_params(pathlib.Path(self.where), config, mesh, config.train.compute_dtype)


def load_params(step_dir: pathlib.Path, config: schema.Config, mesh, dtype: str | None = None):
    """The weights of a checkpoint, arranged and in their storage sharding on the mesh. dtype: to become; None: train.param_dtype.

    Raises ConfigError (float64 without 64-bit mode), DataError (of another model).
    """
    shapes = jax.eval_shape(lambda: transformer.init(config.model, jax.random.key(0), jax.numpy.dtype(config.train.param_dtype)))
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    abstract = jax.tree.map(place, shapes, arrangement.canonical_shardings(config, mesh, shapes))
    return arrangement.arranged(config, mesh, checkpoint.load(step_dir, "params", abstract, config, dtype))
