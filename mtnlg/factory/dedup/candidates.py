"""Which documents are the same, and which may nearly be: those that share the key of a band. Memory is a few bytes a document."""

import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg.core import files
from mtnlg.core.errors import DataError
from mtnlg.factory import folder, words
from mtnlg.factory.dedup.parts import Parts
from mtnlg.factory.dedup.signatures import BANDS, ROW, UNREADABLE
from mtnlg.factory.dedup.spill import Spill

PAIR = np.dtype([("first", "<u4"), ("second", "<u4")])  # numbers of documents, in order
SAME, NEAR, NUMBERS, ENDS = "same", "near", "numbers", "ends"
NUM_BEFORE = 8  # with which a document is compared in each bucket, and with the first
_MAX_DOCUMENTS = 2**31 - 1  # what `duplicates` can pack
_CHUNK = 1 << 16  # rows
_TEXT = np.dtype([("hash", "<u8"), ("number", "<u4")])


def find(signatures: pathlib.Path, path: pathlib.Path) -> None:
    """Makes the folder `path` of what the folder of signatures says; one that was made of just these is left as it is.

    same: PAIRs of equal texts, each with the first one. near: PAIRs that may be near duplicates, each once; of equal texts only the
    first is among them. numbers: of the documents in near, sorted; ends: where the shingles of each end, all of them one behind the other.
    Raises DataError (too many documents), CannotWrite, TemporaryFailure.
    """
    of = {"signatures": folder.sha256(signatures)}
    if folder.is_made_of(path, of):
        return
    rows = Parts(signatures, ROW)
    if len(rows) > _MAX_DOCUMENTS:
        raise DataError(f"{len(rows)} documents are more than {_MAX_DOCUMENTS}", str(signatures), "fewer of them, source by source")
    with folder.making(path, of) as draft:
        is_left = _write_same(rows, draft)
        is_candidate = _write_near(rows, is_left, draft)
        numbers, sizes = np.flatnonzero(is_candidate).astype(np.uint32), np.empty(is_candidate.sum(), np.int64)
        for first, chunk in rows.chunks(_CHUNK):
            start, stop = np.searchsorted(numbers, (first, first + len(chunk)))
            sizes[start:stop] = chunk["num_shingles"][numbers[start:stop] - first]
        np.save(draft / f"{NUMBERS}.npy", numbers)
        np.save(draft / f"{ENDS}.npy", np.cumsum(sizes))


def _write_same(rows: Parts, path: pathlib.Path) -> np.ndarray:
    """bool: which documents are not the same as one before them and have shingles."""
    spill, is_left = Spill(path / "texts", _TEXT, len(rows)), np.zeros(len(rows), bool)
    for first, chunk in rows.chunks(_CHUNK):
        is_left[first : first + len(chunk)] = chunk["num_shingles"] > 0
        entries = np.empty(len(chunk), _TEXT)
        entries["hash"], entries["number"] = chunk["text"], np.arange(first, first + len(chunk))
        entries = entries[chunk["num_shingles"] != UNREADABLE]
        spill.add(entries["hash"], entries)
    with files.writing(path), open(path / SAME, "wb") as file:
        for entries in spill.parts():
            entries = entries[np.argsort(entries["hash"], kind="stable")]
            firsts, others = _with_first(entries["hash"], entries["number"])
            file.write(_pairs(firsts, others).tobytes())
            is_left[others] = False
    return is_left


def _write_near(rows: Parts, is_left: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """bool: which documents are in a pair.

    A key and a number are packed into 64 bits, the key losing those that say the part and the last few: two that differ but look the
    same bring a pair that is then found to be none.
    """
    number_bits, num_entries = np.uint64(max(len(rows).bit_length(), 1)), BANDS * int(np.count_nonzero(is_left))
    spill, pairs = Spill(path / "bands", "<u8", num_entries), Spill(path / "pairs", "<u8", num_entries)
    number_mask = (np.uint64(1) << number_bits) - np.uint64(1)
    for first, chunk in rows.chunks(_CHUNK):
        left = np.flatnonzero(is_left[first : first + len(chunk)])
        keys = chunk["bands"][left].ravel()
        numbers = np.repeat((left + first).astype(np.uint64), BANDS)
        spill.add(keys, ((keys << np.uint64(spill.num_bits)) & ~number_mask) | numbers)
    for entries in spill.parts():
        entries.sort()
        for firsts, seconds in _in_buckets(entries >> number_bits, entries & number_mask):
            packed = (firsts << np.uint64(32) | seconds)[firsts != seconds]
            pairs.add(words.mixed(packed), packed)
    is_candidate = np.zeros(len(rows), bool)
    with files.writing(path), open(path / NEAR, "wb") as file:
        for packed in pairs.parts():
            packed = np.unique(packed)
            firsts, seconds = packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)
            file.write(_pairs(firsts, seconds).tobytes())
            is_candidate[firsts] = is_candidate[seconds] = True
    return is_candidate


def _in_buckets(keys: np.ndarray, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of sorted keys, pairs with the same one: each number with the first of its bucket and with NUM_BEFORE before it.

    In a bucket of up to NUM_BEFORE + 1 that is every pair; in a larger one their number grows with its size, not with the square.
    """
    is_shared = np.zeros(keys.size, bool)
    is_shared[1:] = keys[1:] == keys[:-1]
    is_shared[:-1] |= is_shared[1:]
    keys, numbers = keys[is_shared], numbers[is_shared]
    yield _with_first(keys, numbers)
    for distance in range(1, NUM_BEFORE + 1):
        is_same = keys[distance:] == keys[:-distance]
        if not is_same.any():
            return
        yield numbers[:-distance][is_same], numbers[distance:][is_same]


def _with_first(keys: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of sorted keys, (the first number with the same one, number) for all numbers that are not themselves the first."""
    is_first = np.ones(keys.size, bool)
    is_first[1:] = keys[1:] != keys[:-1]
    firsts = numbers[is_first][np.cumsum(is_first) - 1]
    return firsts[~is_first], numbers[~is_first]


def _pairs(firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    found = np.empty(firsts.size, PAIR)
    found["first"], found["second"] = firsts, seconds
    return found
