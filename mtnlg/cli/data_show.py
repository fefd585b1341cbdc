"""Shows a store of tokens: how much it holds and of which tokenizer; with --doc, a document of it as ids and as text.

A folder that `tokenize`, `merge` or `split` wrote, or FILE.idx with its FILE.bin, as Megatron has them (then --tokenizer=PATH for text).
"""

import argparse
import textwrap

from mtnlg.factory.report.summary import printable

_MOST_LINES = 10  # of ids, and of text
_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="FILE", help="a folder of tokens, or FILE.idx")
    parser.add_argument("--doc", metavar="N", type=int, help="a document, counted from 0; -1 is the last")
    parser.add_argument("--all", action="store_true", help="the whole document, however long it is")
    parser.add_argument("--tokenizer", metavar="PATH", help="of tokens without a tokenizer beside them")


def run(options: argparse.Namespace) -> int:
    from mtnlg.corpus import tokens
    from mtnlg.data import tokenizer as tokenizers
    from mtnlg.data.store import Store

    prefix, beside = tokens.locate(options.store)
    path = options.tokenizer or beside
    store, tokenizer = Store(prefix), tokenizers.load(path) if path else None
    print(_overview(store, tokenizer, path) if options.doc is None else _document(store, tokenizer, options.doc, options.all))
    return 0


def _overview(store, tokenizer, path) -> str:
    import numpy as np

    lengths = np.diff(store.document_starts)
    quartiles = ", ".join(f"{int(number):,}" for number in np.percentile(lengths, (0, 25, 50, 75, 100)))
    lines = [
        f"{store.prefix}: {store.num_documents:,} documents, {store.num_tokens:,} tokens of {store.dtype} ({store.dtype.itemsize} bytes)",
        f"tokens per document: {quartiles} (least, quarters, most)",
    ]
    if store.sidecar:
        num_bytes = store.sidecar["num_bytes"]
        lines.append(f"text: {num_bytes:,} bytes, {num_bytes / store.num_tokens:.2f} a token")
    named = f"{path}: {tokenizer.vocab_size:,} tokens, a document ends with {tokenizer.eod_id}" if tokenizer else "none beside it"
    return "\n".join([*lines, f"tokenizer: {named}"])


def _document(store, tokenizer, number: int, is_whole: bool) -> str:
    from mtnlg.core.errors import ConfigError

    if not -store.num_documents <= number < store.num_documents:
        raise ConfigError(f"there are {store.num_documents:,} documents", f"--doc={number}", f"--doc=0 to {store.num_documents - 1}")
    number %= store.num_documents
    start, end = store.document_starts[number : number + 2].tolist()
    ids = store.read(start, end - start)
    spelled = textwrap.wrap(" ".join(map(str, ids.tolist())), _WIDTH)
    lines = [f"document {number} of {store.num_documents}: {ids.size} tokens, from token {start} on", *_screen(spelled, is_whole)]
    if tokenizer:
        text = _text(tokenizer, ids)
        rows = [line[at : at + _WIDTH] for line in map(printable, text.split("\n")) for at in range(0, len(line) or 1, _WIDTH)]
        lines += [f"{len(text)} characters, {len(text.encode())} bytes of text", *_screen(rows, is_whole)]
    return "\n".join(lines)


def _text(tokenizer, ids) -> str:
    from mtnlg.core.errors import DataError

    try:
        return tokenizer.decode(ids)
    except IndexError as error:
        raise DataError(f"the tokenizer does not know an id: {error}", "--tokenizer", "the tokenizer that made these tokens") from None


def _screen(lines: list[str], is_whole: bool) -> list[str]:
    """Those that are shown, indented."""
    shown = lines if is_whole else lines[:_MOST_LINES]
    more = [f"... and {len(lines) - len(shown)} more lines; --all shows them"] if len(shown) < len(lines) else []
    return [f"  {line}" for line in [*shown, *more]]
