"""Checkpoints written layer by layer, for weights that no memory holds: Orbax's own format, through the storage that Orbax uses.

A parameter is a Zarr array in chunks of one layer, or of CHUNK_BYTES of one, so that what is on the disk stays when a conversion is
stopped.
"""

import pathlib
import shutil
from collections.abc import Iterable

import numpy as np

from mtnlg.core import files
from mtnlg.core.errors import DataError
from mtnlg.interop.tensors import rows_at_once

NAMED_BY = "OUT"


class LayerWriter:
    """The `params` of a step that is being made in `folder`. shapes: {'a/b/c': shape}, layers first where there are any.

    Both raise TemporaryFailure (no space), CannotWrite.
    """

    def __init__(self, folder: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype: str):
        self._folder, self._shapes, self._dtype = folder, shapes, np.dtype(dtype)
        if not (folder / "params").exists():
            with files.writing_by_library(folder, named_by=NAMED_BY):
                _write_frame(folder, shapes, self._dtype)
        self._stores = {}

    def write(self, path: str, layer: int | None, blocks: Iterable[tuple[int, np.ndarray]]) -> None:
        """Puts one layer of a parameter on the disk. blocks: (where on the layer's first axis it begins, rows from there on)."""
        with files.writing_by_library(self._folder, named_by=NAMED_BY):
            store = self._stores.get(path) or self._stores.setdefault(path, _store(self._folder, path))
            for start, rows in blocks:
                place = slice(start, start + rows.shape[0])
                (store[place] if layer is None else store[layer, place]).write(np.ascontiguousarray(rows, self._dtype)).result()


class LayerReader:
    """The parameters of a step, a layer or some of its rows at a time."""

    def __init__(self, step_dir: pathlib.Path):
        self._folder, self._stores = step_dir, {}

    def read(self, path: str, layer: int | None, rows: slice = slice(None)) -> np.ndarray:
        """One layer of a parameter, or those rows of it. Raises DataError."""
        try:
            store = self._stores.get(path) or self._stores.setdefault(path, _store(self._folder, path))
            return (store[rows] if layer is None else store[layer, rows]).read().result()
        except (ValueError, IndexError) as error:
            raise DataError(f"{path} cannot be read: {error}", str(self._folder), "an older step of the same run") from None


def _write_frame(folder: pathlib.Path, shapes: dict[str, tuple[int, ...]], dtype: np.dtype) -> None:
    """A checkpoint as Orbax makes it, of arrays with one number each, in whose place then arrays of the right shapes are put, empty."""
    from orbax.checkpoint import v1 as ocp

    tree: dict = {}
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = np.zeros([1] * len(shape), dtype)
    draft = files.draft(folder)
    shutil.rmtree(draft, ignore_errors=True)
    ocp.save_checkpointables(draft.absolute(), {"params": tree})
    for path, shape in shapes.items():
        in_layers = path.startswith("blocks/")
        chunk = (*([1] if in_layers else []), rows_at_once(shape[in_layers:], dtype.itemsize), *shape[in_layers + 1 :])
        metadata = {
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }
        _store(draft, path, metadata=metadata, create=True, delete_existing=True)
    draft.replace(folder)


def _store(folder: pathlib.Path, path: str, **options):
    """The Zarr array of a parameter, as TensorStore opens it."""
    import tensorstore

    kvstore = {"driver": "ocdbt", "base": f"file://{folder.absolute()}/params/", "path": f"{path.replace('/', '.')}/"}
    spec = {"driver": "zarr3", "kvstore": kvstore, "store_data_equal_to_fill_value": True}
    if "metadata" in options:
        spec["metadata"] = options.pop("metadata")
    return tensorstore.open(spec, **(options or {"open": True})).result()
