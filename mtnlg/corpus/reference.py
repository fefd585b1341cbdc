"""Two yardsticks for a trained model, in bits per byte of the same held-out text: a byte trigram model, and xz.

A trained model should beat both; it has seen no more than the trigram model has, and xz has seen only the held-out text.
"""

import lzma
from collections.abc import Iterable, Iterator

import numpy as np

from mtnlg.core.errors import DataError

_BYTES = 256
_BOUNDARY = 256  # stands before a document's first byte; a context only, never predicted
_SYMBOLS = 257
_BLOCK_BYTES = 2_000_000  # text handled at once


class ByteTrigram:
    """P(byte | the two before it), smoothed by interpolated Witten-Bell, down to the uniform 1/256.

    With c the count of a byte after a context h, n their sum and t the number of different bytes seen after h,
    P(byte | h) = (c + t P(byte | h without its oldest byte)) / (n + t), and the shorter P alone where h was never seen.
    Witten & Bell 1991, IEEE Trans. Information Theory 37(4), method C; Chen & Goodman 1998, Harvard TR-10-98, section 2.5.
    """

    def __init__(self, train: Iterable[bytes]):
        self._counts = np.zeros(_SYMBOLS * _SYMBOLS * _BYTES, np.int64)  # of [oldest, previous, byte], 135 MB
        for oldest, previous, byte in _trigrams(train):
            np.add.at(self._counts, _index(oldest, previous, byte), 1)
        by_context = self._counts.reshape(-1, _BYTES)
        self._total = by_context.sum(1)
        self._kinds = np.count_nonzero(by_context, axis=1)
        pairs = self._counts.reshape(_SYMBOLS, _SYMBOLS, _BYTES).sum(0)
        unigram = _interpolate(pairs.sum(0, keepdims=True), np.full((1, _BYTES), 1 / _BYTES))
        self._bigram = _interpolate(pairs, unigram)

    def probability(self, oldest, previous, byte) -> np.ndarray:
        """P(byte | oldest, previous) of integer arrays that broadcast; 256 as a context is the start of a document."""
        context = oldest * _SYMBOLS + previous
        total, kinds, shorter = self._total[context], self._kinds[context], self._bigram[previous, byte]
        seen = self._counts[_index(oldest, previous, byte)] + kinds * shorter
        return np.where(total, seen / np.maximum(total + kinds, 1), shorter)


def trigram_bits_per_byte(train: Iterable[bytes], heldout: Iterable[bytes]) -> float:
    """Bits per byte of the held-out documents under a byte trigram model of the training documents; 135 MB of counts and 150 MB to work in.

    Raises DataError when there is no held-out text.
    """
    model = ByteTrigram(train)
    bits = num_bytes = 0
    for oldest, previous, byte in _trigrams(heldout):
        bits -= float(np.log2(model.probability(oldest, previous, byte)).sum())
        num_bytes += byte.size
    return _per_byte(bits, num_bytes)


def xz_bits_per_byte(heldout: Iterable[bytes]) -> float:
    """Bits per byte of the held-out documents, one after the other in one `.xz` at preset 9. Raises DataError when they are empty."""
    compressor = lzma.LZMACompressor(preset=9)
    packed = num_bytes = 0
    for document in heldout:
        packed += len(compressor.compress(document))
        num_bytes += len(document)
    return _per_byte(8 * (packed + len(compressor.flush())), num_bytes)


def _per_byte(bits: float, num_bytes: int) -> float:
    if not num_bytes:
        raise DataError("there is no held-out text to measure", "data.heldout_fraction", "a larger --config.data.heldout_fraction")
    return bits / num_bytes


def _index(oldest, previous, byte):
    return (oldest * _SYMBOLS + previous) * _BYTES + byte


def _interpolate(counts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """The Witten-Bell probabilities of each row of `counts`; `shorter` where the row is empty."""
    total, kinds = counts.sum(1, keepdims=True), np.count_nonzero(counts, axis=1)[:, None]
    return np.where(total, (counts + kinds * shorter) / np.maximum(total + kinds, 1), shorter)


def _trigrams(documents: Iterable[bytes]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(oldest, previous, byte) for every byte of the documents, in arrays of at most _BLOCK_BYTES items."""
    for block in _blocks(documents):
        yield tuple(np.concatenate([piece[i : piece.size - 2 + i] for piece in block]).astype(np.int64) for i in range(3))


def _blocks(documents: Iterable[bytes]) -> Iterator[list[np.ndarray]]:
    """Lists of pieces of documents, of at most _BLOCK_BYTES together; each piece starts with the two symbols before it."""
    block, room = [], _BLOCK_BYTES
    for document in documents:
        symbols = np.full(len(document) + 2, _BOUNDARY, np.uint16)
        symbols[2:] = np.frombuffer(document, np.uint8)
        start = 0
        while start < len(document):
            piece = symbols[start : start + room + 2]
            block.append(piece)
            start += piece.size - 2
            room -= piece.size - 2
            if not room:
                yield block
                block, room = [], _BLOCK_BYTES
    if block:
        yield block
