import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import DataError
from mtnlg.data.megatron_order import MegatronOrder


def literal_indices(lengths, seq_len, seed, num_samples):
    """Megatron's rules, walked token by token as its C++ does."""
    total, num_epochs = sum(lengths), 1
    while num_epochs * total < num_samples * seq_len + 1:
        num_epochs += 1
    separate = False
    if num_epochs > 1:
        before_last = ((num_epochs - 1) * total - 1) // seq_len
        separate = num_samples - before_last < int(0.80 * ((total - 1) // seq_len))
    random = np.random.RandomState(seed)

    def documents(epochs):
        index = np.array(list(range(len(lengths))) * epochs, np.int32)
        random.shuffle(index)
        return index.tolist()

    document_index = documents(num_epochs - 1) + documents(1) if separate else documents(num_epochs)
    samples, place, offset = [(0, 0)], 0, 0
    for _ in range((num_epochs * total - 1) // seq_len):
        remaining = seq_len + 1
        while remaining:
            document_length = lengths[document_index[place]] - offset
            remaining -= document_length
            if remaining <= 0:
                offset += remaining + document_length - 1
                remaining = 0
            else:
                place, offset = place + 1, 0
        samples.append((place, offset))

    def shuffled(first, last):
        numbers = np.arange(first, last, dtype=np.uint32)
        random.shuffle(numbers)
        return numbers.tolist()

    count = len(samples) - 1
    return document_index, samples, shuffled(0, before_last) + shuffled(before_last, count) if separate else shuffled(0, count)


CASES = st.tuples(
    st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.integers(1, 60)
).filter(lambda case: sum(case[0]) > case[1])


@settings(max_examples=200, deadline=None)
@given(case=CASES)
def test_indices_equal_megatrons(case):
    lengths, seq_len, seed, num_samples = case
    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = MegatronOrder(starts, seq_len, seed, num_samples)
    documents, samples, shuffle = literal_indices(lengths, seq_len, seed, num_samples)
    assert order.document_index.dtype == np.int32 and order.shuffle_index.dtype == np.uint32
    assert order.document_index.tolist() == documents
    assert order.sample_index.tolist() == [list(s) for s in samples]
    assert order.shuffle_index.tolist() == shuffle
    assert order.num_samples >= num_samples

    flat = np.arange(starts[-1])
    stream = np.concatenate([flat[starts[d] : starts[d + 1]] for d in documents])
    for k, spans in enumerate(order.spans(np.arange(order.num_samples))):
        tokens = np.concatenate([flat[first : first + count] for first, count in spans])
        assert tokens.tolist() == stream[shuffle[k] * seq_len :][: seq_len + 1].tolist()


def test_both_epoch_rules_occur():
    """10 tokens, windows of 2 + 1: 4 samples an epoch, int(0.8 * 4) = 3 decides."""
    starts = np.array([0, 4, 10])
    few, many = (MegatronOrder(starts, 2, 1, n) for n in (6, 9))  # 2 and 5 samples of the last epoch, of 2 epochs each
    assert sorted(few.shuffle_index[:4].tolist()) == [0, 1, 2, 3]
    assert sorted(few.document_index[:2].tolist()) == [0, 1]
    assert len(many.document_index) == 4 and sorted(many.shuffle_index.tolist()) == list(range(9))


def test_a_case_by_hand(monkeypatch):
    """Unshuffled: documents 0 1 2, 3, 4 5 6 and windows of 3 tokens, one token shared, ending inside a document."""
    monkeypatch.setattr("mtnlg.data.megatron_order._shuffled", lambda random, values: values)
    order = MegatronOrder(np.array([0, 3, 4, 7]), 2, 0, 3)
    assert order.sample_index.tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert order.spans(np.arange(3)) == [[(0, 3)], [(2, 1), (3, 1), (4, 1)], [(4, 3)]]


def test_too_many_samples_and_too_short_a_stream_are_refused():
    order = MegatronOrder(np.array([0, 9]), 4, 0, 2, name="my/store")
    with pytest.raises(DataError, match=r"sample 2 of 2 .*\(my/store\)\. Try: num_samples=3"):
        order.spans(np.array([2]))
    with pytest.raises(DataError, match=r"4 tokens are less than one window of 5 \(my/store\)\. Try: "):
        MegatronOrder(np.array([0, 4]), 4, 0, 1, name="my/store")
