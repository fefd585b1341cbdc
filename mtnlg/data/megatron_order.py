"""Megatron's own order of samples, materialised (megatron/core/datasets/gpt_dataset.py, GPTDataset)."""

import itertools

import numpy as np

from mtnlg.core.errors import DataError
from mtnlg.data.order import require_window

_SEPARATE_BELOW = 0.80


class MegatronOrder:
    """The document, sample and shuffle indices GPTDataset builds for num_samples samples of a store.

    document_index: int32 [E * documents], shuffled documents of E epochs, walked as one stream.
    sample_index: int64 [samples + 1, 2], where each sample starts in it: (place in document_index, token offset).
    shuffle_index: uint32 or int64 [samples], the sample that is read k-th.

    A Megatron sequence is taken to be a document, as it is in stores of GPT data. Raises DataError when the
    stream, called `name`, is shorter than one window.
    """

    def __init__(self, document_starts: np.ndarray, seq_len: int, seed: int, num_samples: int, *, name: str = "the stream"):
        self._starts, self._seq_len, self._name = document_starts, seq_len, name
        num_documents, epoch_tokens = len(document_starts) - 1, int(document_starts[-1])
        require_window(epoch_tokens, seq_len, name)
        num_epochs = max(1, -(-(num_samples * seq_len + 1) // epoch_tokens))
        before_last = ((num_epochs - 1) * epoch_tokens - 1) // seq_len
        per_epoch = (epoch_tokens - 1) // seq_len
        separate = num_epochs > 1 and num_samples - before_last < int(_SEPARATE_BELOW * per_epoch)
        random = np.random.RandomState(seed)

        groups = [num_epochs - 1, 1] if separate else [num_epochs]
        self.document_index = np.concatenate([_shuffled(random, np.tile(np.arange(num_documents, dtype=np.int32), n)) for n in groups])

        self.num_samples = (num_epochs * epoch_tokens - 1) // seq_len
        lengths = np.diff(document_starts)[self.document_index]
        stream_starts = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.arange(self.num_samples + 1, dtype=np.int64) * seq_len
        places = np.searchsorted(stream_starts, tokens, side="right") - 1
        self.sample_index = np.stack([places, tokens - stream_starts[places]], axis=1)

        dtype = np.int64 if self.num_samples >= np.iinfo(np.uint32).max - 1 else np.uint32
        borders = [0, before_last, self.num_samples] if separate else [0, self.num_samples]
        ranges = [np.arange(first, last, dtype=dtype) for first, last in itertools.pairwise(borders)]
        self.shuffle_index = np.concatenate([_shuffled(random, numbers) for numbers in ranges])

    def spans(self, sample_numbers: np.ndarray) -> list[list[tuple[int, int]]]:
        """For each sample the (start, count) pieces of the flat stream that make it up, seq_len + 1 tokens in all.

        Raises DataError past the last sample.
        """
        return [self._spans(number) for number in np.asarray(sample_numbers).tolist()]

    def _spans(self, number: int) -> list[tuple[int, int]]:
        if number >= self.num_samples:
            raise DataError(f"sample {number} of {self.num_samples} is asked for", self._name, f"num_samples={number + 1} at least")
        place, offset = self.sample_index[self.shuffle_index[number]].tolist()
        spans, missing = [], self._seq_len + 1
        while missing:
            document = self.document_index[place]
            first, end = self._starts[document : document + 2].tolist()
            count = min(missing, end - first - offset)
            if count:
                spans.append((first + offset, count))
            place, offset, missing = place + 1, 0, missing - count
        return spans


def _shuffled(random: np.random.RandomState, values: np.ndarray) -> np.ndarray:
    random.shuffle(values)
    return values
