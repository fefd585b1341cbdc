"""Everything that can be wrong with a store of tokens, in a line each."""

import hashlib
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg.core.errors import DataError, MissingInput, MtnlgError
from mtnlg.corpus import tokens
from mtnlg.data import store as stores
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store
from mtnlg.data.tokenizer import Tokenizer
from mtnlg.factory import folder

_SIDECAR = ("format_version", "tokenizer_sha256", "vocab_size", "eod_id", "max_id", "num_tokens", "num_documents", "num_bytes")
_SIDECAR += ("bin_sha256", "idx_sha256")


def faults(path: str, tokenizer: str | None = None) -> list[str]:
    """What is wrong with the store of a folder of tokens, or with one of Megatron's; nothing for one that is whole.

    tokenizer: a path, if none lies beside the store. A store without sidecar is one of Megatron's, whose ids and ends are judged by
    the tokenizer, if there is one. Raises MissingInput where there is no store at all, and what `tokenizer.load` raises.
    """
    prefix, beside = tokens.locate(path)
    if not any(file.exists() for file in (*stores.paths(prefix), prefix.parent / folder.DONE)):
        raise MissingInput("there is no store of tokens", path, "a folder that python -m mtnlg data tokenize wrote, or FILE.idx")
    known = tokenizers.load(tokenizer) if tokenizer else None
    found = list(_of_stage(prefix.parent)) if pathlib.Path(path).is_dir() else []
    try:
        known = known or (beside and tokenizers.load(beside))
        store = Store(prefix)
    except (DataError, MissingInput) as error:
        return [*found, f"{error.what} ({error.where})"]
    sidecar = _sidecar(stores.paths(prefix)[2])
    vocab_size, eod_id = (getattr(known, key) if known else sidecar.get(key) for key in ("vocab_size", "eod_id"))
    lowest, highest = store.extremes()
    where = stores.paths(prefix)[0]
    if lowest < 0 or (isinstance(vocab_size, int) and highest >= vocab_size):
        found.append(f"ids go from {lowest} to {highest}, the vocabulary has {vocab_size} ({where})")
    if isinstance(eod_id, int) and (open_ends := _open_ends(store, eod_id)).size:
        found.append(f"{open_ends.size} documents do not end with {eod_id}, the first of them is {open_ends[0]} ({where})")
    if sidecar or pathlib.Path(path).is_dir():
        found += _of_sidecar(sidecar, store, highest, known)
    return found


def _of_stage(path: pathlib.Path) -> Iterator[str]:
    """What is wrong with a folder, by what its stage says that it wrote there."""
    if not (path / folder.DONE).exists() and not (path / folder.JOURNAL).exists():
        return
    try:
        parts = folder.read(path)["parts"]
        digests = [(path / part["name"], part["sha256"]) for part in parts]
    except (MtnlgError, KeyError, TypeError) as error:
        yield str(error)
        return
    for file, digest in digests:
        if not file.is_file():
            yield f"the file is not there ({file})"
        elif _sha256(file) != digest:
            yield f"the file is not the one that was written ({file})"


def _of_sidecar(sidecar: dict, store: Store, highest: int, known: Tokenizer | None) -> Iterator[str]:
    where = stores.paths(store.prefix)[2]
    if missing := [key for key in _SIDECAR if key not in sidecar]:
        yield f"the sidecar says nothing of {', '.join(missing)} ({where})"
        return
    truth = {"format_version": stores.SIDECAR_VERSION, "max_id": highest}
    truth |= {"num_tokens": store.num_tokens, "num_documents": store.num_documents}
    truth |= dict(zip(("bin_sha256", "idx_sha256"), map(_sha256, stores.paths(store.prefix)), strict=False))
    if known:
        truth |= {"tokenizer_sha256": known.sha256, "vocab_size": known.vocab_size, "eod_id": known.eod_id}
    for key, value in truth.items():
        if sidecar[key] != value:
            yield f"the sidecar says {key} {sidecar[key]!r}, and it is {value!r} ({where})"


def _sidecar(path: pathlib.Path) -> dict:
    """Empty for one that is not there or cannot be read, which `Store` tells apart."""
    try:
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    except FileNotFoundError:
        return {}


def _open_ends(store: Store, eod_id: int) -> np.ndarray:
    """The documents that do not end with it."""
    return np.flatnonzero(store.last_ids() != eod_id)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
