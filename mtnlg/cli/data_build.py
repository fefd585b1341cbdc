"""Builds a graph of stages, as a config file writes it down, each node into a folder of --output, with a page about all of it.

The config is Python with get_graph(); configs/data/demo.py is a small one. What is there already is used as it is; a build that was
stopped, even by SIGKILL, goes on when its command is given again, and ends in the same bytes.
"""

import argparse
import pathlib

from mtnlg.cli import data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s --config=FILE.py --output=FOLDER [options]"
    parser.add_argument("--config", metavar="FILE.py", required=True, help="Python with get_graph()")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where the folders of the nodes are")
    data.add_workers(parser)
    parser.add_argument(
        "--set", metavar="NODE.option=value", action="append", default=[], help="an option of a node, or NODE.inputs=PATH,..."
    )
    parser.add_argument(
        "--redo",
        metavar="NODE,...",
        type=_names,
        default=(),
        help="nodes that are deleted and made anew if they hold something else, with those behind",
    )
    parser.add_argument("--report", metavar="FILE.html", help="where the page goes (default: FOLDER/report.html)")
    parser.add_argument("--dry-run", action="store_true", help="check the graph and show its order; run nothing")


def run(options: argparse.Namespace) -> int:
    from mtnlg.factory import build, graph
    from mtnlg.factory.passes import Machine
    from mtnlg.factory.report import page
    from mtnlg.factory.report.summary import Ended, text

    wanted = graph.load(options.config, options.set)
    if options.dry_run:
        states = build.look(wanted, options.output, options.redo)
        print("\n".join(f"{node.name}: {node.stage} of {', '.join(node.inputs)}: {states[node.name]}" for node in wanted.ordered()))
        return 0
    ended: list[Ended] = []

    def tell(node, path, _) -> None:
        ended.append(Ended.load(path, node.name, node.inputs))
        print(text(ended[-1]), flush=True)

    build.run(wanted, options.output, Machine(num_workers=options.workers), options.redo, tell)
    report = options.report or pathlib.Path(options.output) / "report.html"
    page.write(report, pathlib.Path(options.config).stem, ended)
    print(f"report: {report}")
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))
