"""What a blend means for a run: of each source its tokens, its weight, the samples drawn from it, and how often it is read.

Sources, weights, steps and batches are those of the config; tokens are counted in the prepared folder that it names, or are given:
  --tokens=25.7B,14.8B   of each source in the order of data.source: a number (K, M, B or T behind it), or tokens (a folder, or out/a.idx)
  --tokens=FILE.json     {"name of the source": number}, as configs/data/mtnlg_tokens.json
"""

import argparse
import json
import pathlib
import re

from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput

SAMPLING = "sampling: epochs over those that every source would get if samples were drawn by tokens alone"
_COUNT = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)([KMBT]?)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --config=FILE.py [--tokens=COUNT,...|FILE.json] [--config.key=value ...]"
    parser.add_argument("--tokens", metavar="COUNT,...", help="tokens of each source; none given: those of the prepared folder")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    config = configs.resolve(rest)
    names, tokens = _tokens(config, options.tokens)
    print(table(config, names, tokens))
    return 0


def table(config: schema.Config, names: list[str], tokens: list[int]) -> str:
    """A line for each source, and one for all of them."""
    from mtnlg.data import edits, epochs
    from mtnlg.data.edits import EditedBlend
    from mtnlg.plan import text
    from mtnlg.train import schedule

    end, seq_len = schedule.final_position(config), config.model.seq_len
    blend = EditedBlend(edits.go_on((), 0, config.data.weights or tokens, config.data.order))
    rows = [("source", "tokens", "weight", "samples", "epochs", "sampling")]
    for one in epochs.of_run(names, tokens, blend, end.samples, seq_len):
        sampling = f"{one.sampling:.2f} x {'over' if one.sampling > 1.005 else 'under' if one.sampling < 0.995 else 'even'}"
        rows.append((one.name, count(one.tokens), f"{one.weight:.3%}", f"{one.samples:,}", f"{one.epochs:.2f}", sampling))
    total = sum(tokens)
    rows.append(("all", count(total), "100.000%", f"{end.samples:,}", f"{end.tokens / total:.2f}", ""))
    head = f"{config.name}: {count(end.tokens)} tokens in {config.train.num_steps:,} steps, {seq_len} tokens a sample"
    return "\n".join([head, "", *text.table(rows, "<>>>>>"), "", SAMPLING])


def count(number: int) -> str:
    """A number for people: 25.7 B."""
    for unit in "TBMK":
        if number >= _UNITS[unit]:
            return f"{number / _UNITS[unit]:.1f} {unit}"
    return str(number)


def _tokens(config: schema.Config, given: str | None) -> tuple[list[str], list[int]]:
    """(names, tokens to train on) of the config's sources. Raises ConfigError, MissingInput, DataError."""
    from mtnlg.corpus import manifest, split
    from mtnlg.corpus import tokens as folders

    names = split.names(config.data.source)
    if given is None and all(map(folders.is_folder, config.data.source)):
        return names, [_from_text(source) for source in config.data.source]
    if given is None and config.data.directory is None:
        raise ConfigError(
            "nobody says how many tokens there are", "data.directory", "--config.data.directory=FOLDER, or --tokens=COUNT,..."
        )
    if given is None:
        found = {source.name: source.train.num_tokens for source in manifest.load(pathlib.Path(config.data.directory)).sources}
        if list(found) != names:
            what = f"{', '.join(found)} are prepared there, and the config names {', '.join(names)}"
            raise ConfigError(what, config.data.directory, "the --config.data.source that it was prepared from")
        return names, list(found.values())
    if given.endswith(".json"):
        return names, _from_file(given, names)
    found = [_from_text(item) for item in given.split(",")]
    if len(found) != len(names):
        raise ConfigError(f"{len(found)} counts for {len(names)} sources: {', '.join(names)}", "--tokens", "one for each, in this order")
    return names, found


def _from_text(item: str) -> int:
    from mtnlg.corpus import tokens
    from mtnlg.data.store import Store, paths

    if match := _COUNT.fullmatch(item):
        number = round(float(match[1]) * _UNITS[match[2]])
        if number:
            return number
    elif tokens.is_folder(item) or paths(item)[1].is_file():
        return Store(tokens.locate(item)[0]).num_tokens
    raise ConfigError(f"{item!r} is neither a number of tokens nor a store", "--tokens", "25.7B, or a folder of tokens")


def _from_file(path: str, names: list[str]) -> list[int]:
    try:
        known = json.loads(pathlib.Path(path).read_text())
        return [int(known[name]) for name in names]
    except OSError as error:
        raise MissingInput(f"cannot be read: {error.strerror}", path, "configs/data/mtnlg_tokens.json") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"no numbers by name of source: {error}", path, "as in configs/data/mtnlg_tokens.json") from None
    except KeyError as error:
        raise DataError(f"nothing is said about source {error.args[0]!r}", path, "a line for it") from None
