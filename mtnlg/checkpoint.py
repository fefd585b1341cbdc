"""Checkpoints: the only file that knows Orbax.

`DIRECTORY/STEP/` holds Orbax's `params` and `optimizer`, `meta.json` (step, samples, config, ...) and, written last, `MANIFEST.json`:
size and SHA-256 of every file. A step is built as `STEP.saving` and renamed when its manifest is on disk, so that a folder with a
plain number is always whole. Orbax restores flipped bits in array data without a word; the manifest does not let it.

In a job of several processes all of them save and restore, each its own shards. Everything else process 0 does, and tells the others.
"""

import json
import os
import pathlib
import shutil
import threading

import jax
import numpy as np

from mtnlg.core import config as configs
from mtnlg.core import fault, files, manifest, schema
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.core.manifest import whole_steps
from mtnlg.core.tree import by_path, path_name
from mtnlg.parallel import processes

SMALLEST_CHUNK_BYTES, LARGEST_CHUNK_BYTES = 1 << 20, 1 << 26


class Checkpoints:
    """The checkpoints of one run. Saving goes on in the background; `failed` tells early when it went wrong, `wait` raises why."""

    def __init__(self, directory: str | os.PathLike, keep_last: int):
        self.directory = pathlib.Path(directory)
        self.keep_last = keep_last
        self._worker: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, params, optimizer, meta: dict) -> None:
        """Starts writing a step; the arrays may be donated or changed when this returns. Raises TemporaryFailure (a full disk)."""
        from orbax.checkpoint import v1 as ocp

        self.wait()
        unfinished = self.directory / f"{step}.saving"
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer)))
        with files.writing_by_library(unfinished, num_bytes):
            fault.point("save", step)
            if processes.is_first():  # Orbax lets nobody write before process 0 is here
                shutil.rmtree(unfinished, ignore_errors=True)
                self.directory.mkdir(parents=True, exist_ok=True)
            chunked = ocp.Context()
            chunked.array.saving.scoped_storage_options_creator = _chunks
            with chunked:
                response = ocp.save_checkpointables_async(unfinished.absolute(), {"params": params, "optimizer": optimizer})
        self._worker = threading.Thread(target=self._finish, args=(response, unfinished, self.directory / str(step), meta, num_bytes))
        self._worker.start()

    def _finish(self, response, unfinished: pathlib.Path, final: pathlib.Path, meta: dict, num_bytes: int) -> None:
        try:
            with files.writing_by_library(unfinished, num_bytes):
                response.result()
                if processes.is_first():
                    self.publish(unfinished, final, meta)
        except BaseException as error:
            if processes.is_first():
                shutil.rmtree(unfinished, ignore_errors=True)
            self._error = error

    def publish(self, unfinished: pathlib.Path, final: pathlib.Path, meta: dict) -> None:
        """Gives a step that is on the disk its meta and its manifest, and then its name; only in process 0. Raises OSError."""
        fault.point("publish", int(final.name))
        files.write_synced(unfinished / "meta.json", json.dumps(meta, indent=1))
        files.write_synced(unfinished / manifest.NAME, manifest.content(unfinished))
        files.sync_folder(unfinished)
        fault.point("rename", int(final.name))
        if final.exists():
            final.rename(_unused(self.directory / f"{final.name}.replaced"))
        unfinished.rename(final)
        files.sync_folder(self.directory)
        for old in self.steps()[: -self.keep_last]:
            _delete(self.directory / str(old))

    @property
    def failed(self) -> bool:
        """Whether the save under way has gone wrong already, in this process."""
        return self._error is not None

    def wait(self) -> None:
        """Until the save under way is on disk, in every process. Raises what went wrong; what did in process 0, in all of them."""
        self.join()
        processes.by_first(self._raise_error)  # process 0 publishes, which takes the longest
        self._raise_error()

    def join(self) -> None:
        """Until this process has done its part of the save under way."""
        if self._worker is not None:
            self._worker.join()
            self._worker = None

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def steps(self) -> list[int]:
        """The whole steps on disk, oldest first."""
        return whole_steps(self.directory)

    def newest_good(self, report=print) -> pathlib.Path | None:
        """The newest step that passes its manifest; newer, damaged ones are named and set aside as `STEP.corrupt`, never deleted.

        None when nothing was saved yet. Raises DataError, and moves nothing, when there are steps and all are damaged.
        """
        name = processes.by_first(lambda: self._newest_good(report))
        return name and self.directory / name

    def _newest_good(self, report) -> str | None:
        damaged = {}
        for found in (self.directory / str(step) for step in reversed(self.steps())):
            if not (damage := manifest.problems(found)):
                for other, first in damaged.items():
                    aside = _unused(self.directory / f"{other.name}.corrupt")
                    other.rename(aside)
                    report(f"checkpoint {other} is damaged ({first}): set aside as {aside.name}")
                return found.name
            damaged[found] = damage[0]
        if damaged:
            raise DataError("every checkpoint is damaged", str(self.directory), "another --workdir, or restore a copy")
        return None

    def clear_unfinished(self) -> None:
        """Removes what an interrupted save or deletion left behind; only for the one writer of the folder, before its first save."""
        for pattern in ("*.saving*", "*.deleting"):
            for left in self.directory.glob(pattern):
                shutil.rmtree(left)


def find(path: str | os.PathLike) -> pathlib.Path:
    """The step folder that `path` means: itself, or the newest of a run or checkpoints folder. Raises MissingInput."""
    return pathlib.Path(processes.by_first(lambda: str(_find(pathlib.Path(path).resolve()))))


def is_here(path: pathlib.Path) -> bool:
    """Whether `find` finds a step there, in process 0."""
    try:
        return bool(_find(path.resolve()))
    except MissingInput:
        return False


def _find(path: pathlib.Path) -> pathlib.Path:
    if (path / manifest.NAME).is_file() and (path / "meta.json").is_file():
        return path
    for directory in (path / "checkpoints", path):
        if steps := whole_steps(directory):
            return directory / str(steps[-1])
    raise MissingInput("there is no checkpoint", str(path), "a run's folder, or one of its checkpoints/STEP")


def require_good(step_dir: pathlib.Path) -> None:
    """Raises DataError, naming the file, when a step does not pass its manifest."""
    if damage := processes.by_first(lambda: manifest.problems(step_dir)):
        raise DataError(f"the checkpoint is damaged: {damage[0]}", str(step_dir), "an older step of the same run")


def meta(step_dir: pathlib.Path) -> dict:
    """What was stored beside the arrays."""
    return json.loads((step_dir / "meta.json").read_text())


def load(step_dir: pathlib.Path, part: str, abstract, config: schema.Config, dtype: str | None = None):
    """`part` ('params' or 'optimizer') as a tree of arrays with the shapes, dtypes and shardings of `abstract`, which `config` shaped.

    dtype: what all of them become as they are read; None: they stay what they are.
    Raises DataError with a line for each key of the model and each leaf that differs (Orbax would cast a leaf without a word).
    """
    from orbax.checkpoint import v1 as ocp

    stored, wanted = by_path(stored_shapes(step_dir, part)), by_path(abstract)
    describe = {name: f"{tuple(leaf.shape)} {leaf.dtype}" for name, leaf in stored.items() if hasattr(leaf, "shape")}
    expected = {name: f"{tuple(leaf.shape)} {leaf.dtype}" for name, leaf in wanted.items()}
    differing = [
        f"{name}: stored {describe.get(name, 'nothing')}, wanted {expected.get(name, 'nothing')}"
        for name in sorted(describe.keys() | expected.keys())
        if describe.get(name) != expected.get(name)
    ]
    if differing:
        keys = _differing_keys(step_dir, config)
        differing = [f"{key}: stored {stored}, here {here}" for key, (stored, here) in keys.items()] + differing[:20]
        lines = "\n".join(f"  - {line}" for line in differing)
        cure = " ".join(f"--config.{key}={stored}" for key, (stored, _) in keys.items()) or "the config the run was made with"
        raise DataError(f"the checkpoint's {part} do not fit this model:\n{lines}\n", str(step_dir), cure)
    if dtype is not None:
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), abstract)
    return ocp.load(step_dir.absolute(), abstract, checkpointable_name=part)


def has(step_dir: pathlib.Path, part: str) -> bool:
    """Whether a step holds `part`: converted and exported ones hold no optimizer."""
    return (step_dir / part).is_dir()


def stored_shapes(step_dir: pathlib.Path, part: str):
    """`part` as a tree of what has `shape` and `dtype`, without reading an array. Raises DataError."""
    from orbax.checkpoint import v1 as ocp

    if not has(step_dir, part):
        cure = "--config.init.from with this path and another --workdir, which starts from its weights"
        raise DataError(f"there is no {part} in it, as in what was converted or exported", str(step_dir), cure)
    try:
        return ocp.metadata(step_dir.absolute(), checkpointable_name=part).metadata
    except Exception as error:
        raise DataError(f"the {part} cannot be read: {str(error).splitlines()[0]}", str(step_dir), "an older step") from error


def stored_arrays(step_dir: pathlib.Path, part: str) -> dict[str, np.ndarray]:
    """{'a/b/c': array} of `part`, all of it in this process's memory. Raises DataError."""
    from orbax.checkpoint import v1 as ocp

    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), stored_shapes(step_dir, part))
    return by_path(ocp.load(step_dir.absolute(), empty, checkpointable_name=part))


def _differing_keys(step_dir: pathlib.Path, config: schema.Config) -> dict[str, tuple]:
    """{key: (stored, here)} of what shapes the arrays."""
    stored, here = configs.flatten(meta(step_dir)["config"]), configs.to_flat(config)
    keys = [key for key in here if key in stored and (key.startswith("model.") or key == "train.param_dtype")]
    return {key: (stored[key], here[key]) for key in keys if stored[key] != here[key]}


def _chunks(path: tuple, array):
    """How an array lies on the disk: matrices of stacked blocks layer by layer, so that one is read without the others."""
    from orbax.checkpoint import v1 as ocp

    is_stack = "blocks/" in path_name(path) and array.nbytes // array.shape[0] >= SMALLEST_CHUNK_BYTES
    options = ocp.options.ArrayOptions.Saving.StorageOptions
    return options(chunk_byte_size=LARGEST_CHUNK_BYTES, shard_axes=(0,) if is_stack else None)


def _delete(step_dir: pathlib.Path) -> None:
    """Deletes a step so that, stopped half-way, it no longer looks like one."""
    shutil.rmtree(step_dir.rename(step_dir.with_suffix(".deleting")))


def _unused(path: pathlib.Path) -> pathlib.Path:
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name.rstrip('0123456789')}{number}")
    return path
