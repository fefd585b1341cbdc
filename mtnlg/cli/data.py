"""Makes a corpus: from raw text to clean, deduplicated, decontaminated, tokenised documents, stage by stage.

Between stages documents lie in folders as JSONL (.jsonl.zst), an object a line with `id`, `text` and `source`. A stage that is stopped,
even by SIGKILL, goes on when its command is given again, and writes the same bytes for any number of workers.
"""

import argparse
import dataclasses
import os
import types
import typing

from mtnlg.factory import registry
from mtnlg.factory.passes import Machine


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = arguments
    cls = registry.options_of(name)
    found = _parser(name, cls).parse_args(rest)
    stage = cls(**{field.name: getattr(found, field.name) for field in dataclasses.fields(cls)})
    tally = stage.run(found.input, found.output, Machine(num_workers=found.workers))
    print(tally.as_json())
    return 0


def _overview() -> str:
    stages = "\n".join(f"  {name:12}  {entry.help}" for name, entry in registry.STAGES.items())
    return f"""usage: mtnlg data STAGE --input=PATH,... --output=FOLDER [--report=FILE.html] [--workers=N] [options of the stage]

{__doc__}
{stages}

`mtnlg data STAGE --help` tells a stage's options."""


def _parser(name: str, cls: type) -> argparse.ArgumentParser:
    from mtnlg.cli.main import Parser

    parser = Parser(prog=f"mtnlg data {name}", description=cls.__doc__, allow_abbrev=False)
    parser.add_argument("--input", metavar="PATH,...", type=_paths, required=True, help="files and folders of JSONL, in this order")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where the stage writes; an unfinished one goes on there")
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    for field in dataclasses.fields(cls):
        reader, meaning = _reader(typing.get_type_hints(cls)[field.name]), f"{field.metadata['help']} (default: {field.default})"
        parser.add_argument(f"--{field.name}", metavar="X", type=reader, default=field.default, help=meaning)
    return parser


def _paths(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _reader(kind):
    """From the text of an option to its value."""
    if isinstance(kind, types.UnionType):
        kind = next(one for one in typing.get_args(kind) if one is not type(None))
    if typing.get_origin(kind) is tuple:
        return _paths
    return _truth if kind is bool else kind


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"
