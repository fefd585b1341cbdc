"""The stages by name. Each is a frozen dataclass of its options, with `run(inputs, output, machine) -> Tally`."""

import dataclasses
import importlib
from dataclasses import dataclass

from mtnlg.core.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    module: str
    cls: str
    help: str


STAGES = {
    "clean": Entry("clean", "Clean", "repair encodings and white space, leave out what is too short"),
    "decontaminate": Entry("decontaminate", "Decontaminate", "remove what evaluation tasks have too"),
}


def options_of(name: str) -> type:
    """The dataclass of a stage, whose fields are its options. Raises ConfigError."""
    if name not in STAGES:
        raise ConfigError(f"there is no stage {name!r}", "mtnlg data", f"one of {', '.join(STAGES)}")
    entry = STAGES[name]
    return getattr(importlib.import_module(f"mtnlg.factory.{entry.module}"), entry.cls)


def make(name: str, options: dict):
    """The stage with these options; others keep their defaults. Raises ConfigError."""
    cls = options_of(name)
    known = {field.name for field in dataclasses.fields(cls)}
    for key in options:
        if key not in known:
            raise ConfigError(f"stage {name} has no option {key!r}", "mtnlg data", f"one of {', '.join(sorted(known))}")
    return cls(**options)
