"""A run's folder: one writer at a time, and a record of what was run."""

import json
import os
import pathlib
import shlex

from mtnlg.core import config as config_files
from mtnlg.core import files, lock, schema
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput
from mtnlg.run import environment

CONFIG = "config.json"
STOP = "stop"  # a file that somebody makes: the run stops and saves, and does not start while it is there


class RunFolder:
    """The folder of a run, made if need be and held for this process until the `with` block ends.

    The kernel drops the lock when the process dies, however it dies: a `lock` file left behind blocks nobody.
    Entering raises CannotWrite (no folder can be here, or another process holds it), TemporaryFailure (no space), or ConfigError where
    a file `stop` says that nobody is to start.
    """

    def __init__(self, workdir):
        self.path = pathlib.Path(workdir)

    def __enter__(self) -> "RunFolder":
        if self.is_to_stop():
            raise ConfigError("a file says that this run is to stop", str(self.path / STOP), f"rm {shlex.quote(str(self.path / STOP))}")
        files.make_folder(self.path)
        self._lock = lock.held(self.path / "lock", self._refuse)
        self._lock.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self._lock.__exit__(None, None, None)

    def _refuse(self, owner: str) -> None:
        raise CannotWrite(f"this run is being written by {owner}", str(self.path), "stop it first, or another --workdir") from None

    def is_to_stop(self) -> bool:
        """Whether somebody has made the file `stop`."""
        return (self.path / STOP).exists()

    def beat(self) -> None:
        """A sign of life of who holds the folder, for other processes: the lock file's time. Raises OSError."""
        os.utime(self.path / "lock")

    def owner(self) -> str:
        """Who holds the folder, as its lock file says here; a process on another file system sees somebody else, or nobody."""
        try:
            return (self.path / "lock").read_text().strip()
        except OSError:
            return "nobody"

    def record(self, config: schema.Config, overrides: dict, devices: str | None = None) -> dict[str, tuple]:
        """Writes `config.json`, `overrides.json` and `environment.json`; returns {key: (before, now)} where a resumed run's config changed.

        A file that changes is kept as `config.1.json`, `config.2.json`, and so on, oldest first.
        Raises DataError if the config already here cannot be understood; CannotWrite; TemporaryFailure.
        """
        known = (self.path / CONFIG).exists()
        changed = config_files.differences(read_config(self.path), config) if known else {}
        for name, values in (
            (CONFIG, config_files.to_nested(config)),
            ("overrides.json", overrides),
            ("environment.json", environment.snapshot(devices)),
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
        raise MissingInput(f"no run here: {error.strerror}", str(path), "the --workdir of an earlier `python -m mtnlg train`") from None
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
