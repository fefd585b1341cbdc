"""Leaves out documents that the corpus has already, or nearly (MT-NLG, arXiv 2201.11990, section 3): MinHash, LSH, and a look at each pair.

Three times over the corpus: for the signatures of all texts, for the shingles of those that share a band, and to write what is kept.
Behind the first, candidates are found; behind the second, their similarity is measured and clusters are made.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import key
from mtnlg.factory import documents, folder, passes, stage
from mtnlg.factory.dedup import candidates, duplicates, signatures
from mtnlg.factory.dedup.duplicates import Duplicates
from mtnlg.factory.dedup.parts import Parts
from mtnlg.factory.dedup.signatures import BAND_ROWS, BANDS, ROW, Sign
from mtnlg.factory.documents import Drop
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Batch, Machine, Result
from mtnlg.factory.tally import Tally

SIGNATURES, SHINGLES = "signatures", "shingles"  # folders of the first two passes, in that of the stage
CANDIDATES, DUPLICATES = "candidates", "duplicates"  # folders of what is found behind them
EXACT, NEAR = "exact duplicate", "near duplicate"


@dataclass(frozen=True)
class Dedup:
    """Leaves out documents whose text is that of an earlier one, or nearly. Inputs that are named first come first."""

    min_jaccard: float = key(0.8, "shingles that two texts share, of all that either has, from which on they are near duplicates")
    shingle_words: int = key(5, "words in a row that are a shingle; a Han character or a kana is a word")

    def check(self) -> None:
        if not 0 < self.min_jaccard <= 1:
            raise ConfigError(f"min_jaccard={self.min_jaccard} is out of range", "--min_jaccard", "a number above 0 and up to 1, as 0.8")
        if self.shingle_words < 1:
            raise ConfigError(f"shingle_words={self.shingle_words} is out of range", "--shingle_words", "1 or more words, as 5")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        """Raises what `check`, `candidates.find` and `passes.run` raise."""
        self.check()
        read, output = Inputs(inputs), pathlib.Path(output)
        what = {"stage": "dedup", "options": dataclasses.asdict(self)}
        work = stage.DocumentWork(functools.partial(_Step, output / SIGNATURES, output / DUPLICATES), is_numbered=True)
        return passes.run(output, what, read, work, stage.SUFFIX, machine, functools.partial(self._find, read, output, machine))

    def _find(self, read: Inputs, output: pathlib.Path, machine: Machine) -> Tally:
        """All that comes before the last pass."""
        signed, shingled, pairs, found = (output / name for name in (SIGNATURES, SHINGLES, CANDIDATES, DUPLICATES))
        settings = {"shingle_words": self.shingle_words, "bands": BANDS, "band_rows": BAND_ROWS}
        what = {"stage": "dedup, signatures", "options": settings}
        passes.run(signed, what, read, Sign(self.shingle_words), signatures.SUFFIX, machine, whole=output)
        candidates.find(signed, pairs)
        what = {"stage": "dedup, shingles", "options": settings | {"signatures": folder.sha256(signed)}}
        passes.run(shingled, what, read, _Shingles(pairs, self.shingle_words), ".shingles", machine, whole=output)
        return duplicates.find(pairs, shingled, self.min_jaccard, found, machine)


class _Shingles:
    """Of a batch: the shingles of its candidates, one behind the other."""

    def __init__(self, pairs: pathlib.Path, shingle_words: int):
        self._pairs, self._shingle_words = pairs, shingle_words

    def __call__(self, batch: Batch) -> Result:
        start, stop = np.searchsorted(self._numbers, (batch.first, batch.first + len(batch.records)))
        records = [batch.records[number - batch.first] for number in self._numbers[start:stop].tolist()]
        sets = signatures.shingles([documents.parse(record)["text"] for record in records], self._shingle_words)
        return Result(sets.values.tobytes())

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        return np.load(self._pairs / f"{candidates.NUMBERS}.npy", mmap_mode="r")


class _Step:
    """The step of the last pass."""

    def __init__(self, signed: pathlib.Path, found: pathlib.Path):
        self._rows = Parts(signed, ROW)
        sources = folder.read(signed)["tally"]["counts"].get("documents read", ())
        self._sources: Mapping[int, str] = {signatures.hash_of(source): source for source in sources}
        self._duplicates = Duplicates(found)

    def __call__(self, number: int, document: dict, tally: Tally) -> list[dict] | Drop:
        self._show(number, document, tally)
        found = self._duplicates.get(number)
        if found is None:
            return [document]
        kept, is_exact = found
        source = self._sources.get(int(self._rows.slice(kept, kept + 1)["source"][0]), "another")
        tally.count("duplicates", f"{document['source']} of {source}")
        return Drop(EXACT if is_exact else NEAR)

    def _show(self, number: int, document: dict, tally: Tally) -> None:
        for place, (first, second, jaccard) in enumerate(self._duplicates.shown.tolist(), 1):
            if number in (first, second):
                shown = {"id": document["id"], "is": "kept" if number == first else "left out", "text": documents.shown(document["text"])}
                tally.sample(f"{NEAR}, pair {place}, Jaccard {jaccard:.3f}", shown)
