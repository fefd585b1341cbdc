"""Prints a resolved config, explains a key, or lists what two configs differ in."""

import argparse
import json

from mtnlg.cli import keys
from mtnlg.core import config as configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --config=FILE.py [--config.key=value ...] [--explain KEY] [--diff OTHER.py]"
    parser.epilog = keys.describe_all()
    parser.add_argument("--explain", metavar="KEY", help="what a key means, with its default and its value in --config")
    parser.add_argument("--diff", metavar="OTHER", help="another config file (FILE.py, FILE.py:ARG or a run's config.json)")


def run(options: argparse.Namespace, config_arguments: list[str]) -> int:
    if options.explain is not None:
        print(keys.describe(options.explain))
        if config_arguments:
            print(f"      here: {configs.to_flat(configs.resolve(config_arguments))[options.explain]}")
        return 0
    config = configs.resolve(config_arguments)
    if options.diff is not None:
        other = configs.resolve([f"--config={options.diff}"])
        rows = configs.differences(config, other)
        width = max((len(name) for name in rows), default=0)
        print("\n".join(f"{name:{width}}  {here} | {there}" for name, (here, there) in rows.items()) or "no difference")
        return 0
    print(json.dumps(configs.to_nested(config), indent=2))
    return 0
