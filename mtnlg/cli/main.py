"""`mtnlg VERB ...`: finds the verb's file, runs it, and turns errors into one line and an exit code."""

import argparse
import difflib
import importlib
import os
import re
import sys
import traceback

from mtnlg.core.errors import ConfigError, MtnlgError, WorkerLost
from mtnlg.launch import processes

VERBS = {
    "train": "pretrain a model; started again with the same --workdir it goes on",
    "generate": "continue a prompt with a trained model",
    "chat": "talk with a trained model that has a chat template",
    "serve": "answer over HTTP, as OpenAI's API, with a page in the browser",
    "config": "print, explain and compare configs",
    "plan": "what lies where on a mesh, every collective of a step, and pipeline schedules as pictures",
    "launch": "start a training job in several processes",
    "supervise": "start a training command again when it was killed, lost a process or was stuck",
    "data": "make a corpus: extract, clean, deduplicate, decontaminate, tokenise, blend",
    "convert": "bring weights in and out: Hugging Face, llama.cpp, Megatron-LM",
    "goodput": "where a run's time went, as a table and a picture",
    "ckpt": "list, verify, show, compare and export checkpoints",
    "demo": "train a small model on this Python's own library and show what it learnt",
}
# argparse's words for what is wrong with an argument.
_OF_ARGUMENT = re.compile(r"argument (?P<name>\S+): (?P<what>.*)", re.DOTALL)
_NO_NUMBER = re.compile(r"invalid (?P<kind>int|float) value: (?P<value>.*)", re.DOTALL)
_NO_CHOICE = re.compile(r"invalid choice: (?P<value>.*) \(choose from (?P<choices>.*)\)", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = _before_command(arguments)
    debug = "--debug" in own
    try:
        return _run([a for a in own if a != "--debug"] + arguments[len(own) :])
    except MtnlgError as error:
        if debug:
            traceback.print_exc()
        print(f"mtnlg: error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("mtnlg: stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if not processes.in_job():
            raise
        gone = _lost_peer(error)
        if debug or gone is None:
            traceback.print_exc()
        if gone is not None:
            print(f"mtnlg: error: {gone}", file=sys.stderr)
        code = gone.exit_code if gone is not None else 1
    if code and processes.in_job():
        processes.leave(code)
    return code


def _before_command(arguments: list[str]) -> list[str]:
    """Those that are ours: after `--` comes the command that `launch` or `supervise` starts."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _lost_peer(error: Exception) -> WorkerLost | None:
    """What a collective's error means when another process of the job has died; None for any other error."""
    said = str(error)
    if type(error).__name__ not in ("JaxRuntimeError", "ValueError") or not any(
        sign in said for sign in ("Gloo", "NCCL", "closed by peer", "heartbeat")
    ):
        return None
    cure = "the same command; it goes on from the last checkpoint"
    return WorkerLost("another process of the job is gone", said.splitlines()[0][:120], cure)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        import mtnlg

        print(mtnlg.__version__)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1, 0.6)
        cure = f"python -m mtnlg {near[0]}" if near else f"one of {', '.join(VERBS)}"
        raise ConfigError(f"there is no verb {verb!r}", "command line", cure)
    module = importlib.import_module(f"mtnlg.cli.{verb}")
    if hasattr(module, "main"):  # a verb with verbs of its own
        return module.main(rest) or 0
    parser = parser_of(module, verb)
    options, others = parser.parse_known_args(rest)
    return module.run(options, others) or 0


class Parser(argparse.ArgumentParser):
    """argparse, with errors as ours, and with none of an option that is misspelt or given twice passed over."""

    def parse_known_args(self, args=None, namespace=None):
        self._own = _before_command(args)
        self._refuse_twice([one.partition("=")[0] for one in self._own])
        options, others = super().parse_known_args(args, namespace)
        self._refuse_misspelt([one for one in others if one in self._own])
        return options, others

    def _refuse_twice(self, names: list[str]) -> None:
        for name, action in self._option_string_actions.items():
            if isinstance(action, argparse._StoreAction) and names.count(name) > 1:
                is_list = str(action.metavar).endswith(",...")
                raise ConfigError(f"{name} is given twice", "command line", f"{name}=ONE,TWO" if is_list else "one of them")

    def _refuse_misspelt(self, arguments: list[str]) -> None:
        """Raises ConfigError for what is nearly an option; of the others the verbs know which are config keys."""
        known = [option.strip("-") for option in self._option_string_actions]
        for given in arguments:
            name = given.partition("=")[0]
            is_unknown = name.startswith("-") and " " not in name and name not in self._option_string_actions
            near = difflib.get_close_matches(name.strip("-"), known, 1, 0.6)
            if is_unknown and near and not name.startswith("--config"):
                raise ConfigError(f"unknown argument {given[:80]!r}", "command line", f"--{near[0]}")

    def error(self, message: str):
        self._refuse_misspelt(self._own)  # rather than to miss the option that is meant
        where, what, cure = "command line", message, f"{self.prog} --help"
        if found := _OF_ARGUMENT.fullmatch(message):
            name, what = found.groups()
            where = name if name.startswith("-") else where
        if found := _NO_NUMBER.fullmatch(what):
            what, cure = f"{found['value']} is no {'whole ' if found['kind'] == 'int' else ''}number", f"{name}=N"
        elif found := _NO_CHOICE.fullmatch(what):
            what = f"{found['value']} is not one of {found['choices'].replace(chr(39), '')}"
        elif what == "expected one argument":
            where, what, cure = "command line", f"{name} has no value", f"{name}=VALUE"
        raise ConfigError(what, where, cure)


def parser_of(module, verb: str) -> Parser:
    """Of a verb's module, which says what it is for and adds its arguments."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"python -m mtnlg {verb}", description=module.__doc__, allow_abbrev=False, formatter_class=raw)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    module.add_arguments(parser)
    return parser


def _overview() -> str:
    verbs = "\n".join(f"  {name:10} {meaning}" for name, meaning in VERBS.items())
    return f"""usage: python -m mtnlg VERB [options] [--config=FILE --config.key=value ...]

GPT-style language models in JAX, from raw text to generated text.

{verbs}

`python -m mtnlg VERB --help` tells more; `python -m mtnlg train --help` lists every config key. `--debug` shows tracebacks.
Exit codes: 0 done, 2 bad config or usage, 16 loss not finite, 17 a device computes wrongly, 65 damaged data, 66 missing
input, 69 a process was lost, 73 cannot write, 74 stuck, 75 try again, 130 stopped by Ctrl-C."""
