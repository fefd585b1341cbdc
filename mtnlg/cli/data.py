"""Makes a corpus: from raw text to clean, deduplicated, decontaminated, tokenised documents, stage by stage.

Between stages documents lie in folders as JSONL (.jsonl.zst), an object a line with `id`, `text` and `source`. A stage that is stopped,
even by SIGKILL, goes on when its command is given again, and writes the same bytes for any number of workers.
"""

import argparse
import functools
import importlib
import os
import pathlib
from typing import NamedTuple

from mtnlg.cli.main import Parser, parser_of
from mtnlg.core.errors import ConfigError
from mtnlg.factory import registry
from mtnlg.factory.passes import Machine


class Command(NamedTuple):
    """What is no stage: a module here, as of a verb."""

    module: str
    help: str
    takes_config: bool = False


COMMANDS = {
    "build": Command("data_build", "a whole graph of stages, as configs/data/demo.py writes it down"),
    "blend": Command("data_blend", "how often a run with these weights reads each source", takes_config=True),
    "show": Command("data_show", "a store of tokens, and its documents as ids and text"),
    "verify": Command("data_verify", "whether a store of tokens is whole"),
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = arguments
    options, others = parser(name).parse_known_args(rest)
    if name in COMMANDS and COMMANDS[name].takes_config:
        return _module(name).run(options, others) or 0
    _refuse_unknown(name, others)
    return (_module(name).run(options) or 0) if name in COMMANDS else _run_stage(name, options)


def parser(name: str) -> Parser:
    """Of a stage or a command. Raises ConfigError."""
    if name in COMMANDS:
        return parser_of(_module(name), f"data {name}")
    if name not in registry.STAGES:
        known = [*registry.STAGES, *COMMANDS]
        raise ConfigError(f"there is no stage or command {name!r}", "python -m mtnlg data", registry.nearest(name, known))
    return _stage_parser(name)


def _refuse_unknown(name: str, arguments: list[str]) -> None:
    if not arguments:
        return
    cure = f"python -m mtnlg data {name} --help"
    cure = cure if arguments[0].startswith("-") else f"commas between several, as --input=ONE,TWO; {cure}"
    raise ConfigError(f"unknown argument {arguments[0]!r}", "command line", cure)


def _module(name: str):
    return importlib.import_module(f"mtnlg.cli.{COMMANDS[name].module}")


def _run_stage(name: str, found: argparse.Namespace) -> int:
    from mtnlg.factory.report.summary import Ended, text

    stage = registry.make(name, {option: getattr(found, field.name) for option, field in registry.fields_of(name).items()})
    stage.run(found.input, found.output, Machine(num_workers=found.workers))
    path = pathlib.Path(found.output)
    ended = Ended.load(path, path.resolve().name, found.input)
    print(text(ended))
    if found.report:
        from mtnlg.factory.report import page

        page.write(found.report, ended.name, [ended])
        print(f"  report     {found.report}")
    return 0


def _overview() -> str:
    stages = "\n".join(f"  {name:15}  {entry.help}" for name, entry in registry.STAGES.items())
    commands = "\n".join(f"  {name:15}  {command.help}" for name, command in COMMANDS.items())
    return f"""usage: python -m mtnlg data STAGE --input=PATH,... --output=FOLDER [--report=FILE.html] [--workers=N] [options of the stage]
       python -m mtnlg data COMMAND ...

{__doc__}
Stages:
{stages}

Commands:
{commands}

`python -m mtnlg data STAGE --help` tells a stage's options."""


def _stage_parser(name: str) -> Parser:
    parser = Parser(prog=f"python -m mtnlg data {name}", description=registry.options_of(name).__doc__, allow_abbrev=False)
    parser.add_argument("--input", metavar="PATH,...", type=paths, required=True, help=registry.STAGES[name].reads)
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where the stage writes; an unfinished one goes on there")
    add_workers(parser)
    parser.add_argument("--report", metavar="FILE.html", help="a page about what was kept, what was left out and why")
    for option, field in registry.fields_of(name).items():
        is_list = isinstance(field.default, tuple)
        default = ",".join(map(str, field.default)) if is_list else field.default
        meaning = (f"{field.metadata['help']} (default: {default})" if default != "" else field.metadata["help"]).replace("%", "%%")
        shown = "|".join(field.metadata["choices"]) or ("X,..." if is_list else "X")
        read = functools.partial(registry.value, name, option)
        parser.add_argument(f"--{option}", dest=field.name, metavar=shown, type=read, default=field.default, help=meaning)
    return parser


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", metavar="N", type=_count, default=os.cpu_count(), help="processes (default: one for each core)")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def paths(text: str) -> tuple[str, ...]:
    """Of a list with commas."""
    return tuple(part for part in text.split(",") if part)
