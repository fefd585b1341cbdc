"""Checks a store of tokens: a folder that `tokenize`, `merge` or `split` wrote, or FILE.idx with its FILE.bin, as Megatron has them.

The index's header and sizes, that every sequence lies in .bin, ids below the size of the vocabulary, an end of document at each end,
what the sidecar says, and the hashes of all files. Exit code 0, or 65 with each fault in a line.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="FILE", help="a folder of tokens, or FILE.idx")
    parser.add_argument("--tokenizer", metavar="PATH", help="of tokens without a tokenizer beside them, to judge ids and ends by")


def run(options: argparse.Namespace) -> int:
    from mtnlg.core.errors import DataError
    from mtnlg.factory.tokens import verify

    if found := verify.faults(options.store, options.tokenizer):
        for fault in found:
            print(f"{options.store}: {fault}")
        return DataError.exit_code
    print(f"{options.store}: whole")
    return 0
