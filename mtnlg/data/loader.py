"""From sample numbers to batches."""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mtnlg.core.errors import DataError
from mtnlg.data.edits import EditedBlend
from mtnlg.data.megatron_order import MegatronOrder
from mtnlg.data.order import WindowOrder, derive
from mtnlg.data.store import Store


class Loader:
    """Training batches as a pure function of sample numbers: its only state is how many samples were consumed.

    blend: which store each sample comes from. num_samples: how many samples the run will ask for, which only order='megatron' needs.
    reset_at_documents: positions and attention start again after each eod_id, which belongs to the document it ends.

    Feistel orders have a key of their own for each store; Megatron gives each store the same seed, and so does order='megatron'.
    Raises DataError when a store is shorter than one window.
    """

    def __init__(
        self,
        stores: list[Store],
        blend: EditedBlend,
        *,
        seq_len: int,
        seed: int,
        order: str = "feistel",
        num_samples: int = 0,
        reset_at_documents: bool,
        eod_id: int,
    ):
        self._stores, self._seq_len, self._blend = stores, seq_len, blend
        self._border = eod_id if reset_at_documents else None
        self._orders = []
        for number, (store, drawn) in enumerate(zip(stores, blend.drawn(num_samples).tolist(), strict=True)):
            if order == "megatron":
                self._orders.append(MegatronOrder(store.document_starts, seq_len, seed, drawn, name=store.prefix))
            else:
                self._orders.append(WindowOrder(store.num_tokens, seq_len, derive(seed, number), name=store.prefix))

    def batch(self, sample_numbers: np.ndarray) -> dict[str, np.ndarray]:
        """int64 [B] sample numbers to a batch, [B, L] each (the batch contract of docs/design.md).

        tokens, targets, positions, segment_ids int32; weights float32. Raises DataError on an id outside its store's vocabulary.
        """
        windows = np.empty((len(sample_numbers), self._seq_len + 1), np.int32)
        sources, indices = self._blend.locate(sample_numbers)
        for source in np.unique(sources):
            rows = np.flatnonzero(sources == source)
            for row, spans in zip(rows, self._orders[source].spans(indices[rows]), strict=True):
                windows[row] = np.concatenate([self._stores[source].read(start, count) for start, count in spans])
            self._stores[source].require_known(windows[rows])
        return _whole(windows[:, :-1], windows[:, 1:], self._border)


def _whole(tokens: np.ndarray, targets: np.ndarray, border: int | None) -> dict[str, np.ndarray]:
    """A batch without padding; border as in `_segments`."""
    positions, segment_ids = _segments(tokens, border)
    return {
        "tokens": np.ascontiguousarray(tokens),
        "targets": np.ascontiguousarray(targets),
        "positions": positions,
        "segment_ids": segment_ids,
        "weights": np.ones(tokens.shape, np.float32),
    }


def _segments(tokens: np.ndarray, border: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(positions, segment_ids) int32 [B, L]: a segment begins at the start of a row and after each border, if that is an id."""
    begins = np.zeros(tokens.shape, bool)
    if border is not None:
        begins[:, 1:] = tokens[:, :-1] == border
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    origin = np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return places - origin, 1 + np.cumsum(begins, axis=1, dtype=np.int32)


class Heldout:
    """A held-out stream in windows that do not overlap: every token but the first is a target exactly once.

    num_targets: targets of the whole stream. reset_at_documents, eod_id: as in `Loader`, so that scoring sees what training saw.
    Raises DataError when there is no token to predict.
    """

    def __init__(self, store: Store, *, seq_len: int, reset_at_documents: bool, eod_id: int):
        self._store, self._seq_len, self._border = store, seq_len, eod_id if reset_at_documents else None
        self.num_targets = store.num_tokens - 1
        if not self.num_targets:
            raise DataError(
                "a held-out stream of one token has nothing to predict", store.prefix, "a larger --config.data.heldout_fraction"
            )

    def batches(self, batch_size: int, max_tokens: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Batches [batch_size, L] of the first max_tokens targets (all of them if None); padding has weight 0, segment 0 and its
        place in the row as its position."""
        length, num_targets = self._seq_len, self.num_targets if max_tokens is None else min(max_tokens, self.num_targets)
        for first in range(0, num_targets, batch_size * length):
            count = min(batch_size * length, num_targets - first)
            stream = np.zeros(batch_size * length + 1, np.int32)
            stream[: count + 1] = self._store.read(first, count + 1)
            self._store.require_known(stream)
            scored = np.arange(batch_size * length).reshape(batch_size, length) < count
            batch = _whole(stream[:-1].reshape(scored.shape), stream[1:].reshape(scored.shape), self._border)
            padding = {"positions": np.arange(length, dtype=np.int32)}
            yield {name: np.where(scored, values, padding.get(name, 0)).astype(values.dtype) for name, values in batch.items()}


class Prefetcher:
    """Runs function(argument) for each argument in one thread, `depth` calls ahead of use; iterating gives the results in order.

    An exception of the function is raised where its result would have been. Use it as a context manager, which ends the thread.
    """

    def __init__(self, function: Callable, arguments: Iterable, depth: int = 2):
        self._function, self._arguments, self._depth = function, iter(arguments), depth

    def __enter__(self):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._pending = collections.deque()
        self._submit(self._depth)
        return self

    def __exit__(self, *_):
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self):
        return self

    def __next__(self):
        if not self._pending:
            raise StopIteration
        result = self._pending.popleft().result()
        self._submit(1)
        return result

    def _submit(self, count: int) -> None:
        for argument in itertools.islice(self._arguments, count):
            self._pending.append(self._thread.submit(self._function, argument))
