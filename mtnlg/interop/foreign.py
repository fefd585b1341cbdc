"""A model of another project: what it computes, and where its numbers are."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from mtnlg.core import schema
from mtnlg.interop.layout import Key, Layout
from mtnlg.interop.tensors import Tensors


class Foreign(NamedTuple):
    """dtype: the narrowest that holds every number; architecture: its project's name.

    text_folder: where its tokenizer lies; text_fields: the tokenizer, as a GGUF file has it; both None: it has none.
    """

    model: schema.Model
    layout: Layout
    tensors: Tensors
    dtype: np.dtype
    architecture: str
    text_folder: pathlib.Path | None
    text_fields: dict[str, Any] | None = None

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
        made = None
        for place, layer in enumerate(layers):
            rows = self.read(Key(path, layer), index[1:], dtype)
            made = np.empty((len(layers), *rows.shape), rows.dtype) if made is None else made
            made[place] = rows
        return made
