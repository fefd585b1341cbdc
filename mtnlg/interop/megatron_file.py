"""Megatron-LM's model_optim_rng.pt: pickles, whose arrays are read and whose classes are never imported or run.

torch's own reader of weights alone makes tensors and plain values. A checkpoint's settings name classes too (argparse.Namespace, enums of
Megatron's), for which a stand-in that only keeps attributes is put. A file that names any other class is refused. Tensors are compared
with the checksums that torch has written since 1.6.
"""

import contextlib
import os
import pathlib
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from mtnlg.core import extras, files
from mtnlg.core.errors import DataError, MissingInput

CURE = "the whole checkpoint, copied again"
MAX_PICKLE_BYTES = 1 << 28
ZIP_START = b"PK\x03\x04"
LEGACY_PICKLES = 4  # torch before 1.6: a magic number, a version, the machine, then what was saved
MEGATRON = "megatron."
KNOWN = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "datetime.timedelta",
    "_io.BytesIO",
    "fp16.loss_scaler.LossScaler",
    "fp16.loss_scaler.DynamicLossScaler",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(f"signal.{name}" for name in ("Signals", "SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")),
}


class StandIn:
    """In place of an object whose class is not loaded: its attributes, if it has any, and nothing that does something."""

    def __new__(cls, *values, **named):
        return super().__new__(cls)

    def __init__(self, *values, **named):
        pass

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __repr__(self) -> str:
        return "a value of a class that is not loaded"


class File:
    """What a file holds, its tensors mapped and not yet read. Raises DataError, MissingInput, ConfigError (torch is not installed)."""

    def __init__(self, path: str | os.PathLike):
        with extras.needed("megatron"):
            import torch
        self.path = pathlib.Path(path)
        try:
            with self.path.open("rb") as file:
                zipped = file.read(len(ZIP_START)) == ZIP_START
        except OSError as error:
            raise MissingInput(f"cannot be read: {error.strerror}", str(path), CURE) from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                named, self._sums = _zip_names(self.path) if zipped else (_old_names(self.path), None)
                stood_for = [(StandIn, name) for name in named if name in KNOWN or name.startswith(MEGATRON)]
                with _only_safe(stood_for):
                    self.state: dict[str, Any] = torch.load(self.path, map_location="cpu", mmap=zipped, weights_only=True)
        except Exception as error:  # what torch raises for damaged files is of a dozen kinds
            if refused := re.search(r"GLOBAL (\S+)", str(error)):
                what = f"names {refused[1]}, which is neither a number nor a setting of Megatron's: nothing of it was run"
                raise DataError(what, str(path), "a checkpoint from a source that you trust, saved again by Megatron-LM") from None
            raise DataError(f"not a checkpoint of torch: {_first_line(error)}", str(path), CURE) from None
        if not isinstance(self.state, dict):
            raise DataError("holds no named values", str(path), CURE)
        self._sound: set[int] = set()

    def array(self, value, name: str) -> np.ndarray:
        """The view of a tensor. Raises DataError: something else, of a type that numpy has no name for, or not as the file was written."""
        import torch

        if not isinstance(value, torch.Tensor):
            raise DataError(f"{name} is no tensor", str(self.path), CURE)
        value = value.detach()
        try:
            self._require_sound(value, name)
            return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if value.dtype == torch.bfloat16 else value.numpy()
        except (TypeError, RuntimeError) as error:
            raise DataError(f"{name}, of {value.dtype}, cannot be read: {_first_line(error)}", str(self.path), CURE) from None

    def _require_sound(self, value, name: str) -> None:
        """The bytes of a tensor have a checksum that the file has for as many bytes, if it has checksums."""
        import torch

        storage = value.untyped_storage()
        if self._sums is None or storage.nbytes() == 0 or storage.data_ptr() in self._sound:
            return
        whole = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (whole.nbytes, zlib.crc32(whole)) not in self._sums:
            raise DataError(f"{name} is damaged: its checksum is another", str(self.path), CURE)
        self._sound.add(storage.data_ptr())


@contextlib.contextmanager
def _only_safe(stood_for: list[tuple[type, str]]) -> Iterator[None]:
    """Makes these all that torch puts for a class of others: not what else in this process has called safe."""
    import torch

    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(stood_for):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _zip_names(path: pathlib.Path) -> tuple[set[str], set[tuple[int, int]] | None]:
    """(every class or function that the pickle names, found without running it, (bytes, checksum) of every part; None: it has none).

    Raises ValueError and what zipfile raises.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
        if any(part.file_size > MAX_PICKLE_BYTES for part in pickles):
            raise ValueError(f"more than {MAX_PICKLE_BYTES} bytes of pickle")
        sums = {(part.file_size, part.CRC) for part in parts} if any(part.CRC for part in parts) else None
        for part in pickles if sums is None else ():
            part.CRC = None  # torch was told to write none
        return {name for part in pickles for name in _named(archive.read(part))}, sums


def _old_names(path: pathlib.Path) -> set[str]:
    """The same of a file of torch before 1.6."""
    with path.open("rb") as file:
        return {name for _ in range(LEGACY_PICKLES) for name in _named(file)}


def _named(pickle) -> set[str]:
    return {argument.replace(" ", ".") for opcode, argument, _ in pickletools.genops(pickle) if opcode.name == "GLOBAL"}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip().splitlines()[0] if str(error).strip() else ''}".strip()


def plain(args: StandIn) -> dict[str, Any]:
    """The attributes of a checkpoint's args; what is neither a number nor a word nor a list is a stand-in."""
    simple = (type(None), bool, int, float, str, list, tuple)
    return {key: value if isinstance(value, simple) else StandIn() for key, value in vars(args).items()}


def save(path: pathlib.Path, args: dict[str, Any], arrays: dict[str, np.ndarray], named_by: str) -> None:
    """One rank's file, as Megatron-LM's `--ckpt-format torch` has it. Raises CannotWrite, TemporaryFailure."""
    import argparse

    with extras.needed("megatron"):
        import torch

    def tensor(rows: np.ndarray):
        rows = np.require(rows, requirements=["C", "W"])
        as_torch = rows.dtype != ml_dtypes.bfloat16
        return torch.from_numpy(rows) if as_torch else torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)

    dtypes = {rows.dtype for rows in arrays.values()}
    params_dtype = getattr(torch, np.dtype(dtypes.pop()).name) if len(dtypes) == 1 else torch.float32
    state = {
        "args": argparse.Namespace(**args, params_dtype=params_dtype),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "model": {name: tensor(rows) for name, rows in arrays.items()},
    }
    draft = files.draft(path)
    with files.writing(path, sum(rows.nbytes for rows in arrays.values()), named_by):
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            torch.save(state, file)
            files.sync(file)
        os.replace(draft, path)
        files.sync_folder(path.parent)
