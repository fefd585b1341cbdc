"""What near duplicates are found by: of each text its shingles (runs of words), of these a MinHash signature, of it a key for each band.

Signatures are rensa's R-MinHash, which agree in one place with the probability that is the Jaccard similarity of two sets.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from mtnlg.core import extras
from mtnlg.factory import documents, words
from mtnlg.factory.documents import Unreadable
from mtnlg.factory.passes import Batch, Result
from mtnlg.factory.tally import Tally

BANDS, BAND_ROWS = 20, 13  # MT-NLG, arXiv 2201.11990, section 3
SUFFIX = ".signatures"
UNREADABLE = -1
ROW = np.dtype([("text", "<u8"), ("source", "<u8"), ("bands", "<u8", BANDS), ("num_shingles", "<i4")])  # text, source: hashes
_SEED = 530
_FACTORS = words.mixed(np.arange(1, BANDS * BAND_ROWS + 1, dtype=np.uint64)) | np.uint64(1)


@dataclass(frozen=True)
class Sets:
    """Of several texts one behind the other. values: of shingles, sorted, without doubles; ends: where each text's end."""

    values: np.ndarray
    ends: np.ndarray


def shingles(texts: list[str], num_words: int) -> Sets:
    """The runs of num_words words of each text; one of fewer words is a run itself, one without words has none.

    Two different runs share a value with probability 2^-64.
    """
    taken = [(values[is_taken], owner[is_taken]) for _, values, owner, is_taken in words.runs_inside(texts, num_words)]
    values = np.concatenate([np.empty(0, np.uint64), *(values for values, _ in taken)])
    owners = np.concatenate([np.empty(0, np.intp), *(owner for _, owner in taken)])
    order = np.argsort(owners, kind="stable")
    values, owners = values[order], owners[order]
    sizes = np.bincount(owners, minlength=len(texts))
    for end, size in zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True):
        values[end - size : end].sort()
    is_new = np.ones(values.size, bool)
    is_new[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])
    return Sets(values[is_new], np.cumsum(np.bincount(owners[is_new], minlength=len(texts))))


def band_keys(sets: Sets) -> np.ndarray:
    """uint64 [texts, BANDS]: two texts share a band's key if they agree in all its rows, and else but by chance.

    So it is with the first half of its rows and the upper 32 bits, and with the other rows and the lower ones.
    """
    with extras.needed("data"):
        from rensa import RMinHash

    offsets = np.append(0, sets.ends).astype(np.uint64)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(sets.values, offsets, BANDS * BAND_ROWS, _SEED).to_rows()
    weighted = np.array(rows, np.uint64).reshape(-1, BANDS * BAND_ROWS) * _FACTORS
    halves = np.split(weighted.reshape(-1, BANDS, BAND_ROWS), [-(-BAND_ROWS // 2)], axis=2)
    upper, lower = (words.mixed(half.sum(axis=2, dtype=np.uint64)) for half in halves)
    return (upper & np.uint64(0xFFFFFFFF << 32)) | (lower >> np.uint64(32))


@dataclass(frozen=True)
class Sign:
    """Of a batch: a ROW for each record, in order."""

    shingle_words: int

    def __call__(self, batch: Batch) -> Result:
        rows, tally = np.zeros(len(batch.records), ROW), Tally()
        rows["num_shingles"] = UNREADABLE
        places, texts = [], []
        for place, record in enumerate(batch.records):
            try:
                document = documents.parse(record)
            except Unreadable:  # the last pass sets it aside
                continue
            places.append(place)
            texts.append(document["text"])
            rows["text"][place], rows["source"][place] = hash_of(document["text"]), hash_of(str(document["source"]))
            tally.count("documents read", document["source"])
        sets = shingles(texts, self.shingle_words)
        rows["num_shingles"][places] = np.diff(sets.ends, prepend=0)
        rows["bands"][places] = band_keys(sets)
        return Result(rows.tobytes(), tally)


def hash_of(text: str) -> int:
    """64 bits: of a billion texts, two that differ share one with probability 0.03."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
