"""Learns from good and bad documents what `filter --quality` and `annotate --with=quality` score by; `quality.npz` is a linear
classifier of words and pairs of words. One document in ten is held out, and tells how well it does.
"""

import argparse

from mtnlg.cli.data import paths
from mtnlg.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--positive", metavar="PATH,...", type=paths, required=True, help="JSONL of good documents: books, Wikipedia")
    parser.add_argument("--negative", metavar="PATH,...", type=paths, required=True, help="JSONL of what is to be judged: a crawl")
    parser.add_argument("--output", metavar="FILE.npz", required=True, help="where the classifier is written")
    parser.add_argument("--num_epochs", metavar="N", type=int, default=3, help="how often the documents are read (default: 3)")


def run(options: argparse.Namespace) -> int:
    if not options.output.endswith(".npz"):
        raise ConfigError(f"{options.output!r} does not end in .npz", "--output", "--output=quality.npz")
    from mtnlg.factory.text import quality

    trained = quality.train(options.positive, options.negative, options.num_epochs)
    trained.classifier.save(options.output)
    print(f"{options.output}: learnt from {trained.trained:,} documents, half of them good, {options.num_epochs} times")
    print(f"  held out   {trained.held_out:,} documents: accuracy {trained.accuracy:.4f}, AUC {trained.auc:.4f}")
    if trained.unreadable:
        print(f"  unreadable {trained.unreadable:,} records, passed over")
    return 0
