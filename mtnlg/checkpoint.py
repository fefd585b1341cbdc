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
from collections.abc import Sequence

import jax
import numpy as np

from mtnlg.core import config as configs
from mtnlg.core import fault, files, manifest, schema
from mtnlg.core.errors import DataError, MissingInput, MtnlgError, TemporaryFailure
from mtnlg.core.keeping import kept
from mtnlg.core.manifest import whole_steps
from mtnlg.core.tree import by_path, path_name
from mtnlg.parallel import processes

FORMAT = 1  # of a step folder; what `load` reads
SMALLEST_CHUNK_BYTES, LARGEST_CHUNK_BYTES = 1 << 20, 1 << 26


class Checkpoints:
    """The checkpoints of one run in one folder. Saving goes on in the background; `failed` tells early when it went wrong.

    keep_last, keep_every_steps, keep_best: which steps outlive the save of a newer one, as in `keeping.kept`.
    """

    def __init__(self, directory: str | os.PathLike, keep_last: int, keep_every_steps: int = 0, keep_best: int = 0):
        self.directory = pathlib.Path(directory)
        self._keep = (keep_last, keep_every_steps, keep_best)
        self._worker: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failure: TemporaryFailure | None = None

    def save(self, step: int, params, optimizer, meta: dict) -> None:
        """Starts writing a step; the arrays may be donated or changed when this returns.

        When the save before failed for want of room, this is its second try, and is waited for: raises TemporaryFailure if it fails too.
        """
        from orbax.checkpoint import v1 as ocp

        is_second_try, self._failure = self.settle() is not None, None
        unfinished = self.directory / f"{step}.saving"
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer)))
        try:
            self._prepare(step, unfinished, num_bytes)
            chunked = ocp.Context()
            chunked.array.saving.scoped_storage_options_creator = _chunks
            with files.writing_by_library(unfinished, num_bytes), chunked:
                response = ocp.save_checkpointables_async(unfinished.absolute(), {"params": params, "optimizer": optimizer})
            arguments = (response, unfinished, self.directory / str(step), meta, num_bytes)
            self._worker = threading.Thread(target=self._finish, args=arguments)
            self._worker.start()
        except TemporaryFailure as error:
            self._error = error  # as if it had been met in the background
        if is_second_try:
            self.wait()

    def _prepare(self, step: int, unfinished: pathlib.Path, num_bytes: int) -> None:
        """Fails in every process if in any: Orbax would wait for the one that does not come."""
        error = None
        try:
            with files.writing(unfinished, num_bytes):
                fault.point("save", step)
                if processes.is_first():  # Orbax lets nobody write before process 0 is here
                    self._clear(unfinished)
                    self.directory.mkdir(parents=True, exist_ok=True)
        except MtnlgError as failure:
            error = failure
        processes.raise_together(error)

    def _finish(self, response, unfinished: pathlib.Path, final: pathlib.Path, meta: dict, num_bytes: int) -> None:
        try:
            with files.writing_by_library(unfinished, num_bytes):
                response.result()
                if processes.is_first():
                    self.publish(unfinished, final, meta)
        except BaseException as error:
            if processes.is_first():
                self._clear(unfinished)
            self._error = error

    def _clear(self, unfinished: pathlib.Path) -> None:
        """Removes what there is of a step that will not be finished, Orbax's own drafts too: a full disk needs the room."""
        for left in self.directory.glob(f"{unfinished.name}*"):
            shutil.rmtree(left, ignore_errors=True)

    def publish(self, unfinished: pathlib.Path, final: pathlib.Path, meta: dict) -> None:
        """Gives a step that is on the disk its meta and its manifest, and then its name; only in process 0. Raises OSError."""
        fault.point("publish", int(final.name))
        files.write_synced(unfinished / "meta.json", json.dumps({"format": FORMAT} | meta, indent=1))
        files.write_synced(unfinished / manifest.NAME, manifest.content(unfinished))
        files.sync_folder(unfinished)
        fault.point("rename", int(final.name))
        if final.exists():
            final.rename(_unused(self.directory / f"{final.name}.replaced"))
        unfinished.rename(final)
        files.sync_folder(self.directory)
        losses = {step: _heldout_loss(self.directory / str(step)) for step in self.steps()}
        for old in losses.keys() - kept(losses, *self._keep):
            _delete(self.directory / str(old))

    @property
    def failed(self) -> bool:
        """Whether the save under way has gone wrong already, in this process."""
        return self._error is not None

    def wait(self) -> None:
        """Until the save under way is on disk, in every process. Raises in all of them what went wrong in one: TemporaryFailure, ..."""
        if failure := self.settle():
            raise failure

    def settle(self) -> TemporaryFailure | None:
        """As `wait`, but the failure that a second try may mend is returned, in every process, until there is one."""
        if self._worker is not None or self._error is not None:  # so in every process, or in none
            self.join()
            error, self._error = self._error, None
            try:
                processes.raise_together(error)
            except TemporaryFailure as failure:
                self._failure = failure
        return self._failure

    def join(self) -> None:
        """Until this process has done its part of the save under way."""
        if self._worker is not None:
            self._worker.join()
            self._worker = None

    def steps(self) -> list[int]:
        """The whole steps on disk, oldest first."""
        return whole_steps(self.directory)

    def forget(self, up_to_step: int) -> None:
        """Deletes what newer steps elsewhere have overtaken; only in process 0, while nothing is being saved."""
        for step in self.steps():
            if step <= up_to_step:
                _delete(self.directory / str(step))

    def clear_unfinished(self) -> None:
        """Removes what an interrupted save or deletion left behind; only for the one writer of the folder, before its first save."""
        for pattern in ("*.saving*", "*.deleting"):
            for left in self.directory.glob(pattern):
                shutil.rmtree(left)


def newest_good(directories: Sequence[pathlib.Path], report=print) -> pathlib.Path | None:
    """The newest step of all folders that passes its manifest, of equal ones the first folder's.

    Newer, damaged ones are named and set aside as `STEP.corrupt`, never deleted. None when nothing was saved yet. Raises DataError, and
    moves nothing, when there are steps and all are damaged.
    """
    name = processes.by_first(lambda: _newest_good(directories, report))
    return name and pathlib.Path(name)


def _newest_good(directories: Sequence[pathlib.Path], report) -> str | None:
    damaged = {}
    found = [(step, -rank, directory / str(step)) for rank, directory in enumerate(directories) for step in whole_steps(directory)]
    for *_, step_dir in sorted(found, reverse=True):
        if not (damage := manifest.problems(step_dir)):
            for other, first in damaged.items():
                report(f"checkpoint {other} is damaged ({first}): set aside as {set_aside(other, 'corrupt')}")
            return str(step_dir)
        damaged[step_dir] = damage[0]
    if damaged:
        raise DataError("every checkpoint is damaged", ", ".join(map(str, directories)), "another --workdir, or restore a copy")
    return None


def set_aside(step_dir: pathlib.Path, why: str) -> str:
    """Renames a step to `STEP.WHY`, or `STEP.WHY2` and so on, and gives the new name; only in process 0."""
    aside = _unused(step_dir.with_name(f"{step_dir.name}.{why}"))
    step_dir.rename(aside)
    return aside.name


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
    """What was stored beside the arrays. Raises DataError when it is damaged, or of a later version of mtnlg in a form not known here."""
    try:
        stored = json.loads((step_dir / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"meta.json cannot be read: {error}", str(step_dir), "an older step of the same run") from None
    if stored.get("format", FORMAT) > FORMAT:
        writer = f"mtnlg {stored.get('versions', {}).get('mtnlg', 'of a later version')}"
        what = f"the checkpoint is of format {stored['format']}, and this version reads {FORMAT}"
        raise DataError(what, str(step_dir), f"{writer}, which has written it")
    return stored


def _heldout_loss(step_dir: pathlib.Path) -> float | None:
    try:
        return json.loads((step_dir / "meta.json").read_text()).get("heldout_loss")
    except (OSError, ValueError):  # damaged: found out when it is to be restored
        return None


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
