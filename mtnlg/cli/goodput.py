"""Where a run's time went, over all its starts: a table, and a picture goodput.png in its folder.

ETTR, the effective training time ratio, is the share of steps that lasted in all the time since the run first began.
"""

import argparse
import pathlib


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s WORKDIR [--output=FILE.png]"
    parser.add_argument("workdir", metavar="WORKDIR", help="a run's folder, also of a run that is training now")
    parser.add_argument("--output", metavar="FILE.png", help="the picture (default: WORKDIR/goodput.png)")


def run(options: argparse.Namespace, rest: list[str]) -> int:
    from mtnlg.core.errors import ConfigError
    from mtnlg.plan import text
    from mtnlg.run import goodput, goodput_picture
    from mtnlg.run.progress import format_secs

    if rest:
        raise ConfigError(f"unknown argument {rest[0]!r}", "command line", "python -m mtnlg goodput --help")
    folder = pathlib.Path(options.workdir)
    account = goodput.read(folder / goodput.FILE)
    print("\n".join(text.table([("", "seconds", "share", ""), *goodput.table(account)], "<>><")))
    total = format_secs(sum(account.secs.values()))
    print(f"\nETTR {100 * account.ettr:.1f} % of {total} in {account.num_starts} start{'s' * (account.num_starts != 1)}")
    print(goodput_picture.draw(account, pathlib.Path(options.output or folder / "goodput.png")))
    return 0
