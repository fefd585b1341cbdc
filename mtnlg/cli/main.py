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
# argparse's words for what is wrong with an option.
_OF_OPTION = re.compile(r"argument (?P<option>--\w+): (?:invalid (?P<kind>int|float) value: (?P<value>.*)|(?P<other>.*))", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = (
        arguments[: arguments.index("--")] if "--" in arguments else arguments
    )  # after it comes the command that `launch` or `supervise` starts
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
        raise ConfigError(f"there is no verb {verb!r}", "command line", f"one of {', '.join(VERBS)}")
    module = importlib.import_module(f"mtnlg.cli.{verb}")
    if hasattr(module, "main"):  # a verb with verbs of its own
        return module.main(rest) or 0
    parser = parser_of(module, verb)
    options, others = parser.parse_known_args(rest)
    if verb not in ("launch", "supervise"):  # which take a whole command
        _refuse_misspelt(parser, others)
    return module.run(options, others) or 0


def _refuse_misspelt(parser: argparse.ArgumentParser, others: list[str]) -> None:
    """Raises ConfigError for what is nearly an option; of the others the verbs know which are config keys."""
    known = [option.strip("-") for action in parser._actions for option in action.option_strings]
    for given in others:
        name = given.partition("=")[0]
        near = difflib.get_close_matches(name.strip("-"), known, 1, 0.6)
        if name.startswith("-") and not name.startswith("--config") and near:
            raise ConfigError(f"unknown argument {given[:80]!r}", "command line", f"--{near[0]}")


class Parser(argparse.ArgumentParser):
    """argparse, with errors as ours."""

    def error(self, message: str):
        if found := _OF_OPTION.fullmatch(message):
            option, kind, value, other = found.group("option", "kind", "value", "other")
            if kind is not None:
                raise ConfigError(f"{value} is no {'whole ' if kind == 'int' else ''}number", option, f"{option}=N")
            raise ConfigError(other, option, f"{self.prog} --help")
        raise ConfigError(message, "command line", f"{self.prog} --help")


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
