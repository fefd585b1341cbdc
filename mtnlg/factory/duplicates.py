"""Which documents are left out for which: pairs whose Jaccard similarity was measured, joined to clusters, of which the first is kept."""

import functools
import pathlib
from collections.abc import Iterator

import numpy as np

from mtnlg.core import extras, files
from mtnlg.factory import candidates, workers
from mtnlg.factory.candidates import PAIR
from mtnlg.factory.parts import Parts
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import MAX_SAMPLES, Tally

LINK = np.dtype([("first", "<u4"), ("second", "<u4"), ("jaccard", "<f8")])
DUPLICATE = np.dtype([("number", "<u4"), ("kept", "<u4"), ("is_exact", "?")])
LINKS, DUPLICATES, SHOWN = "links", "duplicates.npy", "shown.npy"
_PAIRS_AT_ONCE = 1 << 12
_LINKS_AT_ONCE = 1 << 20


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


def find(pairs: pathlib.Path, path: pathlib.Path, verify: Verify, machine: Machine) -> Tally:
    """Makes the folder `path`; one that is there already is left as it is. Counts clusters by the number of their documents.

    links: LINKs, all that were verified. duplicates: DUPLICATEs, sorted by number. shown: some LINKs with a document that is kept.
    """
    if not path.exists():
        with files.making_folder(path) as draft:
            with files.writing(draft), open(draft / LINKS, "wb") as file:
                for links in workers.ordered(verify, _chunks(pairs / candidates.NEAR, PAIR, _PAIRS_AT_ONCE), machine.num_workers):
                    file.write(links.tobytes())
            numbers = np.load(pairs / f"{candidates.NUMBERS}.npy")
            kept = numbers[_labels(draft / LINKS, numbers)]
            np.save(draft / DUPLICATES, _duplicates(numbers, kept, np.fromfile(pairs / candidates.SAME, PAIR)))
            np.save(draft / SHOWN, _shown(draft / LINKS, numbers, kept))
    tally = Tally()
    _, left_out = np.unique(np.load(path / DUPLICATES)["kept"], return_counts=True)
    for size, times in zip(*np.unique(left_out + 1, return_counts=True), strict=True):
        tally.count("clusters by size", f"{size:9d}", int(times))
    return tally


def _labels(links: pathlib.Path, numbers: np.ndarray) -> np.ndarray:
    """For each candidate, the place of the first one to which links lead from it."""
    with extras.needed("data"):
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

    labels = np.arange(numbers.size, dtype=np.int32)
    for chunk in _chunks(links, LINK, _LINKS_AT_ONCE):
        ends = [labels[np.searchsorted(numbers, chunk[side])] for side in ("first", "second")]
        graph = coo_array((np.ones(len(chunk), bool), ends), shape=(labels.size, labels.size))
        _, components = connected_components(graph, directed=False)
        _, firsts = np.unique(components, return_index=True)
        labels = firsts.astype(np.int32)[components[labels]]
    return labels


def _duplicates(numbers: np.ndarray, kept: np.ndarray, same: np.ndarray) -> np.ndarray:
    """DUPLICATEs, of candidates that are not their own `kept`, and of equal texts, whose first may be left out too."""
    is_near = numbers != kept
    found = np.empty(np.count_nonzero(is_near) + same.size, DUPLICATE)
    near, exact = found[: found.size - same.size], found[found.size - same.size :]
    near["number"], near["kept"], near["is_exact"] = numbers[is_near], kept[is_near], False
    at = np.searchsorted(near["number"], same["first"])
    at[at == near.size] = 0
    is_left_out = near["number"][at] == same["first"] if near.size else np.zeros(same.size, bool)
    exact["number"], exact["kept"], exact["is_exact"] = same["second"], same["first"], True
    exact["kept"][is_left_out] = near["kept"][at[is_left_out]]
    return found[np.argsort(found["number"])]


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
