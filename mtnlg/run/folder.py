"""A run's folder: one writer at a time, and a record of what was run."""

import fcntl
import json
import os
import pathlib
import socket

from mtnlg.core import config as config_files
from mtnlg.core import files, schema
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput
from mtnlg.run import environment

CONFIG = "config.json"


class RunFolder:
    """The folder of a run, made if need be and held for this process until the `with` block ends.

    The kernel drops the lock when the process dies, however it dies: a `lock` file left behind blocks nobody.
    Entering raises CannotWrite (no folder can be here, or another process holds it) or TemporaryFailure (no space).
    """

    def __init__(self, workdir):
        self.path = pathlib.Path(workdir)

    def __enter__(self) -> "RunFolder":
        with files.writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take_lock()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, *_) -> None:
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 1000, 0).decode(errors="replace").strip() or "another process"
            raise CannotWrite(f"this run is being written by {owner}", str(self.path), "stop it first, or another --workdir") from None
        except OSError as error:
            raise CannotWrite(f"this folder cannot be locked: {error.strerror}", str(self.path), "--workdir on a local disk") from error
        with files.writing(self.path / "lock"):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}@{socket.gethostname()} since {environment.now()}\n".encode(), 0)

    def record(self, config: schema.Config, overrides: dict) -> dict[str, tuple]:
        """Writes `config.json`, `overrides.json` and `environment.json`; returns {key: (before, now)} where a resumed run's config changed.

        A file that changes is kept as `config.1.json`, `config.2.json`, and so on, oldest first.
        Raises DataError if the config already here cannot be understood; CannotWrite; TemporaryFailure.
        """
        known = (self.path / CONFIG).exists()
        changed = config_files.differences(read_config(self.path), config) if known else {}
        for name, values in (
            (CONFIG, config_files.to_nested(config)),
            ("overrides.json", overrides),
            ("environment.json", environment.snapshot()),
        ):
            _write_and_keep_old(self.path / name, json.dumps(values, indent=2) + "\n")
        return changed


def read_config(workdir) -> schema.Config:
    """The resolved config of a run. Raises MissingInput if the folder holds no run, DataError if its config does not fit this version."""
    path = pathlib.Path(workdir) / CONFIG
    try:
        nested = json.loads(path.read_text())
        if not isinstance(nested, dict):
            raise ValueError("an object is expected")
        return config_files.from_flat(config_files.flatten(nested))
    except OSError as error:
        raise MissingInput(f"no run here: {error.strerror}", str(path), "the --workdir of an earlier `mtnlg train`") from None
    except ValueError as error:
        raise DataError(f"damaged config: {error}", str(path)) from None
    except ConfigError as error:
        cure = "the version of mtnlg that environment.json names"
        raise DataError(f"config of another version of mtnlg: {error.what}", str(path), cure) from None


def change_table(changed: dict[str, tuple]) -> str:
    """One line a key, `key  before -> now`, in columns: what `RunFolder.record` returned, for people."""
    rows = [(key, json.dumps(before), json.dumps(now)) for key, (before, now) in changed.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return "\n".join(f"{key:{widths[0]}}  {before:>{widths[1]}} -> {now}" for key, before, now in rows)


def _write_and_keep_old(path: pathlib.Path, text: str) -> None:
    with files.writing(path):
        before = path.read_bytes() if path.exists() else None
    if before == text.encode():
        return
    if before is not None:
        number = 1
        while (old := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        files.write_atomic(old, before)
    files.write_atomic(path, text)
