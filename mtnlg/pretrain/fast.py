"""The folder on a fast disk for a run's more frequent checkpoints: it is one run's, and every process sees it."""

import pathlib
import uuid

from mtnlg import checkpoint
from mtnlg.checkpoint import Checkpoints
from mtnlg.core import files, schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import processes

TIE = "fast_checkpoints.txt"  # lies in both folders: an id and the workdir
NAMED_BY = "--config.checkpoint.fast_directory"


def open_folder(config: schema.Checkpoint, workdir: pathlib.Path) -> Checkpoints | None:
    """The checkpoints there, the newest of which is kept; None without such a folder.

    Raises ConfigError (another run's folder, or one that not every process sees), CannotWrite, TemporaryFailure.
    """
    if config.fast_directory is None:
        return None
    folder = pathlib.Path(config.fast_directory)
    processes.by_first(lambda: _tie(workdir, folder))
    same = {f"the run that {folder} belongs to": _read(folder) or "none"}
    processes.require_same(same, f"{NAMED_BY} on a file system that every process sees, or none")
    return Checkpoints(folder, keep_last=1)


def _tie(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes the folder this run's, unless it is another's: of another workdir, or of a run here that it is no longer."""
    here, there = _read(workdir), _read(folder)
    if there and there == here and _workdir(here) == str(workdir.absolute()):
        return
    if there or checkpoint.whole_steps(folder):
        whose = _workdir(there) if there else "nobody knows whose"
        raise ConfigError(f"checkpoints of another run are there: {whose}", str(folder), f"{NAMED_BY}=ANOTHER, or delete this one")
    files.make_folder(folder, NAMED_BY)
    tie = f"{uuid.uuid4()} {workdir.absolute()}\n"
    files.write_atomic(workdir / TIE, tie)
    files.write_atomic(folder / TIE, tie, NAMED_BY)


def let_go(workdir: pathlib.Path) -> None:
    """The run goes on without a fast folder: what lies in one is from then on not its own any more."""
    with files.writing(workdir / TIE):
        (workdir / TIE).unlink(missing_ok=True)


def _read(folder: pathlib.Path) -> str | None:
    try:
        return (folder / TIE).read_text()
    except OSError:
        return None


def _workdir(tie: str) -> str:
    return tie.partition(" ")[2].strip()
