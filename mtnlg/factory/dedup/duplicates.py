"""Which documents are left out for which: pairs whose Jaccard similarity was measured, joined to clusters, of which the first is kept."""

import functools
import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg.core import extras, files
from mtnlg.factory import folder, workers
from mtnlg.factory.dedup import candidates
from mtnlg.factory.dedup.candidates import PAIR
from mtnlg.factory.dedup.parts import Parts
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import MAX_SAMPLES, Tally

LINK = np.dtype([("first", "<u4"), ("second", "<u4"), ("jaccard", "<f8")])
LINKS, DUPLICATES, SHOWN = "links", "duplicates.npy", "shown.npy"
_PAIRS_AT_ONCE = 1 << 12
_LINKS_AT_ONCE = 1 << 18


class Verify:
    """Of PAIRs, those whose shingles are so similar, as LINKs. pairs, shingles: folders of `candidates.find` and of its documents."""

    def __init__(self, pairs: pathlib.Path, shingles: pathlib.Path, min_jaccard: float):
        self._pairs, self._shingles, self._min_jaccard = pairs, shingles, min_jaccard

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        first, second = (self._places(pairs[side]) for side in ("first", "second"))
        sizes = np.stack([self._sizes[first], self._sizes[second]])
        jaccard = np.zeros(len(pairs))
        for at in np.flatnonzero(sizes.min(axis=0) >= self._min_jaccard * sizes.max(axis=0)):  # which it is at most
            jaccard[at] = similarity(self._set(first[at]), self._set(second[at]))
        links = np.empty(len(pairs), LINK)
        links["first"], links["second"], links["jaccard"] = pairs["first"], pairs["second"], jaccard
        return links[jaccard >= self._min_jaccard]

    def _places(self, numbers: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._numbers, numbers)

    def _set(self, place: int) -> np.ndarray:
        end = int(self._ends[place])
        return self._values.slice(end - int(self._sizes[place]), end)

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        return np.load(self._pairs / f"{candidates.NUMBERS}.npy")

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.load(self._pairs / f"{candidates.ENDS}.npy")

    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.diff(self._ends, prepend=0)

    @functools.cached_property
    def _values(self) -> Parts:
        return Parts(self._shingles, "<u8")


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Jaccard's, of two sorted sets."""
    both = np.concatenate((first, second))
    both.sort(kind="stable")  # which merges
    num_shared = np.count_nonzero(both[1:] == both[:-1])
    return num_shared / (both.size - num_shared)


def find(pairs: pathlib.Path, shingles: pathlib.Path, min_jaccard: float, path: pathlib.Path, machine: Machine) -> Tally:
    """Makes the folder `path`; one that was made of just these is left as it is. Counts clusters by the number of their documents.

    pairs, shingles: folders of `candidates.find` and of the pass over its documents.
    links: LINKs, all that were verified. duplicates.npy: number << 32 | kept << 1 | is_exact, sorted. shown.npy: some LINKs from a
    document that is kept. Memory is about 40 bytes for each candidate.
    """
    of = {"shingles": folder.sha256(shingles), "min_jaccard": min_jaccard}
    if not folder.is_made_of(path, of):
        with folder.making(path, of) as draft:
            near = pairs / candidates.NEAR
            num_workers = min(machine.num_workers, 1 + near.stat().st_size // (_PAIRS_AT_ONCE * PAIR.itemsize))
            with files.writing(draft), open(draft / LINKS, "wb") as file:
                for links in workers.ordered(Verify(pairs, shingles, min_jaccard), _chunks(near, PAIR, _PAIRS_AT_ONCE), num_workers):
                    file.write(links.tobytes())
            numbers = np.load(pairs / f"{candidates.NUMBERS}.npy")
            kept = numbers[_labels(draft / LINKS, numbers)]
            np.save(draft / DUPLICATES, _packed(numbers, kept, pairs / candidates.SAME))
            np.save(draft / SHOWN, _shown(draft / LINKS, numbers, kept))
    tally = Tally()
    for size, times in zip(*np.unique(Duplicates(path).cluster_sizes(), return_counts=True), strict=True):
        tally.count("clusters by size", f"{size:9d}", int(times))
    return tally


class Duplicates:
    """What `find` found: which documents are left out, for which, and whether their texts are equal."""

    def __init__(self, path: pathlib.Path):
        self._packed = np.load(path / DUPLICATES, mmap_mode="r").view(np.ndarray)
        self.shown = np.load(path / SHOWN)

    def get(self, number: int) -> tuple[int, bool] | None:
        """(the document that is kept for this one, whether it is the same), or None if this one is kept."""
        at = np.searchsorted(self._packed, np.uint64(number << 32))
        if at == self._packed.size or int(self._packed[at]) >> 32 != number:
            return None
        return (int(self._packed[at]) & 0xFFFFFFFF) >> 1, bool(self._packed[at] & np.uint64(1))

    def numbers(self) -> np.ndarray:
        return (self._packed >> np.uint64(32)).astype(np.uint32)

    def kept(self) -> np.ndarray:
        """For each of `numbers`."""
        return (self._packed.astype(np.uint32)) >> np.uint32(1)

    def cluster_sizes(self) -> np.ndarray:
        """Of each cluster, with the document that is kept."""
        kept = self.kept()
        kept.sort()
        ends = np.flatnonzero(np.append(kept[1:] != kept[:-1], kept.size > 0))
        return np.diff(ends, prepend=-1) + 1


def _labels(links: pathlib.Path, numbers: np.ndarray) -> np.ndarray:
    """For each candidate, the place of the first one to which links lead from it."""
    with extras.needed("data"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    labels = np.arange(numbers.size, dtype=np.int32)
    for chunk in _chunks(links, LINK, _LINKS_AT_ONCE):
        ends = [labels[np.searchsorted(numbers, chunk[side])] for side in ("first", "second")]
        graph = coo_array((np.ones(len(chunk), bool), ends), shape=(labels.size, labels.size))
        number, components = connected_components(graph, directed=False)
        firsts = np.empty(number, np.int32)
        firsts[components[::-1]] = np.arange(labels.size - 1, -1, -1, dtype=np.int32)  # of places given twice, the last counts
        labels = firsts[components[labels]]
    return labels


def _packed(numbers: np.ndarray, kept: np.ndarray, same: pathlib.Path) -> np.ndarray:
    """What `Duplicates` reads, of candidates that are not their own `kept`, and of equal texts, whose first may be left out too."""
    is_left_out = numbers != kept
    numbers, kept = numbers[is_left_out], kept[is_left_out]
    found = np.empty(numbers.size + same.stat().st_size // PAIR.itemsize, np.uint64)
    found[: numbers.size] = _pack(numbers, kept, is_exact=False)
    end = numbers.size
    for pairs in _chunks(same, PAIR, _LINKS_AT_ONCE):
        firsts = pairs["first"].copy()
        at = np.searchsorted(numbers, firsts)
        is_too = np.append(numbers, np.uint32(0xFFFFFFFF))[at] == firsts  # which is no document's number
        firsts[is_too] = kept[at[is_too]]
        found[end : end + len(pairs)] = _pack(pairs["second"], firsts, is_exact=True)
        end += len(pairs)
    found.sort()
    return found


def _pack(numbers: np.ndarray, kept: np.ndarray, is_exact: bool) -> np.ndarray:
    return numbers.astype(np.uint64) << np.uint64(32) | kept.astype(np.uint64) << np.uint64(1) | np.uint64(is_exact)


def _shown(links: pathlib.Path, numbers: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The least similar links from a document that is kept to one that is not."""
    found = np.empty(0, LINK)
    for chunk in _chunks(links, LINK, _LINKS_AT_ONCE):
        is_kept = kept[np.searchsorted(numbers, chunk["second"])] == chunk["first"]
        found = np.concatenate((found, chunk[is_kept]))
        found = found[np.argsort(found["jaccard"], kind="stable")[:MAX_SAMPLES]]
    return found


def _chunks(path: pathlib.Path, dtype: np.dtype, most: int) -> Iterator[np.ndarray]:
    with open(path, "rb") as file:
        while (chunk := np.fromfile(file, dtype, most)).size:
            yield chunk
