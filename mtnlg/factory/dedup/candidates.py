"""Which documents are the same, and which may nearly be: those that share the key of a band. Memory is a few bytes a document."""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from mtnlg.core import files
from mtnlg.core.errors import DataError
from mtnlg.factory import folder, words
from mtnlg.factory.dedup.parts import Parts
from mtnlg.factory.dedup.signatures import BANDS, ROW, UNREADABLE
from mtnlg.factory.dedup.spill import Spill, SpilledSet

PAIR = np.dtype([("first", "<u4"), ("second", "<u4")])  # numbers of documents, in order
SAME, NEAR, NUMBERS, ENDS = "same", "near", "numbers", "ends"
FEW = 9  # documents of a bucket, of which every two are compared
_MAX_DOCUMENTS = 2**31 - 1  # what `duplicates` can pack
_CHUNK = 1 << 15  # rows
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

    First in the buckets of bands. In one that is crowded not all are compared, so its documents are brought together once more, by the
    halves of their bands' keys: two that are more alike than the crowd share one that few others have.
    """
    pairs = SpilledSet(path / "pairs", "<u8", BANDS * int(np.count_nonzero(is_left)))
    is_crowded, is_candidate = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for keys_of, num_keys, is_taken in ((_bands, BANDS, is_left), (_halves, 2 * BANDS, is_crowded)):
        spill = Spill(path / "keys", "<u8", num_keys * int(np.count_nonzero(is_taken)))
        for numbers, sizes in _buckets(rows, is_taken, keys_of, num_keys, spill):
            is_crowded[numbers[np.repeat(sizes > FEW, sizes)]] = True
            for firsts, seconds in _pairs_in(numbers, sizes):
                packed = (firsts << np.uint64(32) | seconds)[firsts != seconds]
                pairs.add(words.mixed(packed), packed)
    with files.writing(path), open(path / NEAR, "wb") as file:
        for packed in pairs.parts():
            firsts, seconds = packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)
            file.write(_pairs(firsts, seconds).tobytes())
            is_candidate[firsts] = is_candidate[seconds] = True
    return is_candidate


def _bands(keys: np.ndarray) -> np.ndarray:
    return words.mixed(keys)


def _halves(keys: np.ndarray) -> np.ndarray:
    """Those of `signatures.band_keys`, so that those of two bands are never the same."""
    halves = np.concatenate([keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)], axis=1)
    return words.mixed(halves | np.arange(2 * BANDS, dtype=np.uint64) << np.uint64(32))


def _buckets(rows: Parts, is_taken: np.ndarray, keys_of: Callable, num_keys: int, spill: Spill) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers of documents, bucket by bucket and in order, sizes of the buckets) of all that share a key.

    A key and a number are packed into 64 bits, the key losing those that say the part and the last few: two that differ but look the
    same bring a pair that is then found to be none.
    """
    number_mask = np.uint64((1 << max(len(rows).bit_length(), 1)) - 1)
    for first, chunk in rows.chunks(_CHUNK):
        taken = np.flatnonzero(is_taken[first : first + len(chunk)])
        keys = keys_of(chunk["bands"][taken]).ravel()
        numbers = np.repeat((taken + first).astype(np.uint64), num_keys)
        spill.add(keys, ((keys << np.uint64(spill.num_bits)) & ~number_mask) | numbers)
    for entries in spill.parts():
        entries.sort()
        starts = np.append(0, np.flatnonzero(entries[1:] ^ entries[:-1] > number_mask) + 1)
        sizes = np.diff(starts, append=entries.size)
        entries &= number_mask
        yield entries[np.repeat(sizes > 1, sizes)], sizes[sizes > 1]


def _pairs_in(numbers: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair in a bucket of a FEW; in a larger one, each number with the first and with the one before it."""
    starts = np.cumsum(sizes) - sizes
    for begin in range(0, numbers.size, _CHUNK):
        places = np.arange(begin, min(begin + _CHUNK, numbers.size))
        bucket = np.searchsorted(starts, places, side="right") - 1
        rank, is_few = places - starts[bucket], sizes[bucket] <= FEW
        seconds = places[rank > 0]
        yield numbers[starts[bucket[rank > 0]]], numbers[seconds]
        for distance in range(1, FEW - 1):
            seconds = places[(rank > distance) & (is_few | (distance == 1))]
            yield numbers[seconds - distance], numbers[seconds]


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
