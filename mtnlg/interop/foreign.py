"""A model of another project: what it computes, and where its numbers are."""

import pathlib
from typing import NamedTuple

import numpy as np

from mtnlg.core import schema
from mtnlg.interop.layout import Key, Layout
from mtnlg.interop.tensors import Tensors


class Foreign(NamedTuple):
    """dtype: the narrowest that holds every number; architecture: its project's name; text_folder: where its tokenizer lies, if it does."""

    model: schema.Model
    layout: Layout
    tensors: Tensors
    dtype: np.dtype
    architecture: str
    text_folder: pathlib.Path | None

    @property
    def where(self) -> str:
        return self.tensors.where

    def read(self, key: Key, index: tuple[slice, ...] = (), dtype=None) -> np.ndarray:
        """A slice of one layer of a parameter, in our order of axes; of the file only what it needs."""
        return self.layout.ours(self.tensors.read, key, index, dtype)

    def read_stacked(self, path: str, index: tuple[slice, ...], dtype) -> np.ndarray:
        """A slice of a parameter as it lies in the tree, layers first: what one device has of it."""
        if not path.startswith("blocks/"):
            return self.read(Key(path, None), index, dtype)
        layers = range(*index[0].indices(self.model.num_layers))
        return np.stack([self.read(Key(path, layer), index[1:], dtype) for layer in layers])
