"""The stages by name. Each is a frozen dataclass of its options, with `run(inputs, output, machine) -> Tally`.

It may also have `check()`, which raises what `run` would raise for these options whatever the inputs are. A trailing underscore in a
field's name is not part of the option (`with`).
"""

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Iterable
from dataclasses import dataclass

from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """reads: what it takes as input."""

    module: str
    cls: str
    help: str
    reads: str = "files and folders of JSONL, in this order"


TOKENS = "folders that `tokenize` wrote"

STAGES = {
    "extract": Entry(
        "raw.extract",
        "Extract",
        "documents of text, source code, HTML, WARC, JSONL, Parquet and data sets of the hub",
        reads="files and folders of any kind, `python`, or hf:NAME of the hub",
    ),
    "clean": Entry("text.clean", "Clean", "repair encodings and white space, leave out what is too short"),
    "filter": Entry("text.filter", "Filter", "keep documents by language, quality, fields and heuristics"),
    "train-quality": Entry("text.train_quality", "TrainQuality", "learn what `filter --quality` scores by, from good and other documents"),
    "dedup": Entry("dedup.dedup", "Dedup", "leave out documents that are there already, or nearly"),
    "decontaminate": Entry("tasks.decontaminate", "Decontaminate", "remove what evaluation tasks have too"),
    "annotate": Entry("text.annotate", "Annotate", "write language, quality, words and tags beside the texts"),
    "train-tokenizer": Entry("tokens.train_tokenizer", "TrainTokenizer", "train a tokenizer on a sample of the documents"),
    "tokenize": Entry("tokens.tokenize", "Tokenize", "text to token ids, in Megatron's .bin and .idx"),
    "merge": Entry("tokens.merge", "Merge", "several folders of tokens into one", reads=TOKENS),
    "split": Entry("tokens.merge", "Split", "a folder of tokens into train, valid and test", reads=TOKENS),
}


def options_of(name: str) -> type:
    """The dataclass of a stage, whose fields are its options. Raises ConfigError."""
    if name not in STAGES:
        raise ConfigError(f"there is no stage {name!r}", "python -m mtnlg data", nearest(name, STAGES))
    entry = STAGES[name]
    return getattr(importlib.import_module(f"mtnlg.factory.{entry.module}"), entry.cls)


def fields_of(name: str) -> dict[str, dataclasses.Field]:
    """The options of a stage by name. Raises ConfigError."""
    return {field.name.rstrip("_"): field for field in dataclasses.fields(options_of(name))}


def make(name: str, options: dict):
    """The stage with these options, a text being read as on a command line; others keep their defaults.

    Raises ConfigError, and what the stage's `check` raises.
    """
    fields = fields_of(name)
    values = {option: value(name, option, given) for option, given in options.items()}
    stage = options_of(name)(**{fields[option].name: read for option, read in values.items()})
    if hasattr(stage, "check"):
        stage.check()
    return stage


def value(name: str, option: str, given):
    """What is given for an option of a stage, as its type. Raises ConfigError."""
    fields = fields_of(name)
    if option not in fields:
        raise ConfigError(f"stage {name} has no option {option!r}", "python -m mtnlg data", nearest(option, fields))
    field = fields[option]
    annotation, choices = typing.get_type_hints(options_of(name))[field.name], field.metadata["choices"]
    try:
        read = configs.from_text(annotation, given) if isinstance(given, str) else configs.as_type(annotation, given)
    except ValueError:
        what = f"{option}={given!r} is not {configs.kind(annotation)}"
        raise ConfigError(what, f"stage {name}", f"{option}={'VALUE' if field.default is None else field.default}") from None
    if choices and read not in choices:
        raise ConfigError(f"{option}={read!r} is not known", f"stage {name}", f"one of {', '.join(map(str, choices))}")
    return read


def nearest(name: str, known: Iterable[str]) -> str:
    """What was perhaps meant, or else all that could be."""
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return near[0] if near else f"one of {', '.join(known)}"
