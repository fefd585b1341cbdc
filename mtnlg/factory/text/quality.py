"""A linear classifier of texts on hashed words and pairs of words, trained from good and bad documents, document by document.

GPT-3 (arXiv 2005.14165, appendix A) and MT-NLG (arXiv 2201.11990, section 3.2) take pages of Common Crawl by such a score: logistic
regression on hashed words there, a 2-gram fastText classifier here.
"""

import hashlib
import io
import itertools
import pathlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtnlg.core import extras, files
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.factory import documents, words
from mtnlg.factory.documents import Unreadable
from mtnlg.factory.inputs import Inputs

FIELD = "quality"
NAME = "quality.npz"  # in the folder of train-quality
DIGITS = 4  # of a score
HELD_OUT = 10  # one document in so many is kept from training
_BITS = 20
_BATCH = 200  # documents of each kind that training looks at together
_FORMAT = "mtnlg quality 1"


@dataclass(frozen=True)
class Classifier:
    """coefficients: one for each hashed word and pair of words."""

    coefficients: np.ndarray
    intercept: float

    def __call__(self, text: str) -> float:
        """From 0 to 1: how much a text is like the good ones."""
        at, values = features(text)
        logit = float(self.coefficients[at] @ values) + self.intercept
        return round(float(1 / (1 + np.exp(-np.clip(logit, -30, 30)))), DIGITS)

    def save(self, path) -> None:
        """Raises CannotWrite, TemporaryFailure."""
        stream = io.BytesIO()
        np.savez_compressed(stream, format=_FORMAT, coefficients=self.coefficients, intercept=np.float64(self.intercept))
        files.write_atomic(pathlib.Path(path), stream.getvalue())

    @classmethod
    def load(cls, path) -> "Classifier":
        """path: a file, or the folder of train-quality. Raises MissingInput, DataError."""
        cure = "a folder that python -m mtnlg data train-quality wrote"
        try:
            with np.load(_file(path), allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT or file["coefficients"].shape != (1 << _BITS,):
                    raise ValueError
                return cls(file["coefficients"], float(file["intercept"]))
        except OSError as error:
            raise MissingInput(f"cannot be read: {error.strerror}", str(path), cure) from None
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            raise DataError("this is no classifier of quality", str(path), cure) from None


@dataclass(frozen=True)
class Trained:
    """trained, held_out: numbers of documents, half of them good; accuracy and AUC are of those held out. unreadable: passed over."""

    classifier: Classifier
    trained: int
    held_out: int
    accuracy: float
    auc: float
    unreadable: int


def tenth(score: float) -> str:
    """The tenth of the scale that a score lies in, as a key that sorts: 0.3 for 0.3 to 0.4."""
    return f"{min(int(10 * score), 9) / 10:.1f}"


def sha256(path) -> str:
    """Of a classifier's file. Raises MissingInput."""
    try:
        return hashlib.sha256(_file(path).read_bytes()).hexdigest()
    except OSError as error:
        raise MissingInput(f"cannot be read: {error.strerror}", str(path), "python -m mtnlg data train-quality") from None


def _file(path) -> pathlib.Path:
    found = pathlib.Path(path)
    return found / NAME if found.is_dir() else found


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(places, values) of the words and pairs of words that a text has; values: how often, scaled to the length 1."""
    found = [values >> np.uint64(64 - _BITS) for _, values in words.runs(words.words(text).values, 2)]
    at, times = np.unique(np.concatenate(found or [np.empty(0, np.uint64)]), return_counts=True)
    return at.astype(np.int64), (times / max(1.0, np.linalg.norm(times))).astype(np.float32)


def train(positive: tuple[str, ...], negative: tuple[str, ...], num_epochs: int) -> Trained:
    """Reads as many good documents as bad ones: when the fewer end, the others are left. Documents of several paths take turns.

    Memory does not grow with the inputs, but for 16 bytes a document that is held out. The same inputs give the same classifier.
    Raises MissingInput, DataError.
    """
    with extras.needed("data"):
        from sklearn.linear_model import SGDClassifier
        from sklearn.metrics import roc_auc_score

    model = SGDClassifier(loss="log_loss", alpha=1e-6, average=True, random_state=0)
    both = _Texts(positive, "--input"), _Texts(negative, "--negative")
    num_trained = 0
    for _ in range(num_epochs):
        for pairs in _batches(zip(both[0].read(False), both[1].read(False), strict=False), _BATCH):
            texts = list(itertools.chain.from_iterable(pairs))
            model.partial_fit(_matrix(texts), [1, 0] * len(pairs), classes=[0, 1])
            num_trained += len(texts)
    if not num_trained:
        raise DataError("no document of one kind can be read", "--input, --negative", "files with a `text` in each line")
    classifier = Classifier(model.coef_[0].astype(np.float32), float(model.intercept_[0]))
    scores = np.array([[classifier(good), classifier(bad)] for good, bad in zip(both[0].read(True), both[1].read(True), strict=False)])
    if not scores.size:
        raise DataError("too few documents to hold one of each kind out", "--input, --negative", "more documents")
    accuracy = ((scores[:, 0] > 0.5).mean() + (scores[:, 1] <= 0.5).mean()) / 2
    auc = roc_auc_score(np.tile([1, 0], len(scores)), scores.ravel())
    unreadable = both[0].unreadable + both[1].unreadable
    return Trained(classifier, num_trained // num_epochs, scores.size, float(accuracy), float(auc), unreadable)


class _Texts:
    """Of the documents at some paths, in turns. unreadable: records that gave none when they were last read."""

    def __init__(self, paths: tuple[str, ...], option: str):
        self._inputs = [Inputs((path,), option) for path in paths]
        self.unreadable = 0

    def read(self, held_out: bool) -> Iterator[str]:
        """The texts that are held out, or the others: by a hash of the text, so that what is there twice is on one side."""
        self.unreadable = 0
        for text in _in_turns([self._texts(inputs) for inputs in self._inputs]):
            if (hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % HELD_OUT == 0) == held_out:
                yield text

    def _texts(self, inputs: Inputs) -> Iterator[str]:
        for _, record in inputs.records():
            try:
                yield documents.parse(record)["text"]
            except Unreadable:
                self.unreadable += 1


def _in_turns(iterators: list[Iterator]) -> Iterator:
    while iterators:
        for iterator in list(iterators):
            try:
                yield next(iterator)
            except StopIteration:
                iterators.remove(iterator)


def _batches(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _matrix(texts: list[str]):
    from scipy.sparse import csr_matrix

    rows = [features(text) for text in texts]
    ends = np.cumsum([0, *(at.size for at, _ in rows)])
    return csr_matrix((np.concatenate([v for _, v in rows]), np.concatenate([at for at, _ in rows]), ends), (len(rows), 1 << _BITS))
