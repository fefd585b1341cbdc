import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import DataError
from mtnlg.data.edits import Edit, EditedBlend
from mtnlg.data.loader import Heldout, Loader, Prefetcher
from mtnlg.data.store import Store, StoreWriter

EOD = 0


def make_store(folder, name, documents):
    with StoreWriter(folder / name, tokenizer_sha256="", vocab_size=65000) as writer:
        for ids in documents:
            writer.add(ids)
    return Store(folder / name, vocab_size=65000)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two stores of distinct ids (1 ... and 30001 ...) whose documents end with EOD."""
    folder, random = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)
    stores = []
    for name, first in (("a", 1), ("b", 30001)):
        lengths = random.integers(1, 30, 60)
        ends = first + np.cumsum(lengths)
        stores.append(make_store(folder, name, [[*range(end - n, end), EOD] for n, end in zip(lengths, ends, strict=True)]))
    return stores


def make_loader(stores, weights=(), edits=(), **changes):
    """weights: none: all the same. edits: more of them, (sample number, weights)."""
    settings = dict(seq_len=12, seed=3, order="feistel", num_samples=200, reset_at_documents=False, eod_id=EOD)
    blend = EditedBlend([Edit(0, weights or (1,) * len(stores)), *(Edit(*edit) for edit in edits)])
    return Loader(stores, blend, **settings | changes)


def make_heldout(store, **changes):
    return Heldout(store, **dict(reset_at_documents=False, eod_id=EOD) | changes)


@pytest.mark.parametrize("order", ["feistel", "megatron"])
def test_shapes_dtypes_and_one_segment(stores, order):
    batch = make_loader(stores, order=order).batch(np.arange(5, 12))
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
        name: ((7, 12), np.dtype(dtype))
        for name, dtype in dict(tokens="i4", targets="i4", positions="i4", segment_ids="i4", weights="f4").items()
    }
    assert (batch["tokens"][:, 1:] == batch["targets"][:, :-1]).all()
    assert (batch["positions"] == np.arange(12)).all()
    assert (batch["segment_ids"] == 1).all() and (batch["weights"] == 1).all()


@pytest.mark.parametrize("order", ["feistel", "megatron"])
def test_a_batch_hangs_on_its_sample_numbers_alone(stores, order):
    first, second = make_loader(stores, (3, 1), order=order), make_loader(stores, (3, 1), order=order)
    whole = first.batch(np.arange(40))
    second.batch(np.arange(7))
    for k in (39, 0, 17):
        alone = second.batch(np.array([k]))
        for name, values in whole.items():
            assert np.array_equal(values[k], alone[name][0])


def test_windows_are_pieces_of_their_store(stores):
    batch = make_loader(stores, (3, 1)).batch(np.arange(200))
    windows = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)
    from_b = (windows > 30000).any(axis=1)
    assert from_b.sum() == 50
    for window, is_b in zip(windows.tolist(), from_b, strict=True):
        stream = stores[int(is_b)].read(0, stores[int(is_b)].num_tokens).tolist()
        first = stream.index(next(id for id in window if id != EOD)) - next(i for i, id in enumerate(window) if id != EOD)
        assert stream[first : first + 13] == window


def test_feistel_covers_an_epoch_and_each_store_has_its_own_order(stores):
    twins = [stores[0], stores[0]]
    loader = make_loader(twins, (1, 1))
    rows = [tuple(row) for row in loader.batch(np.arange(120))["tokens"].tolist()]
    assert rows[0::2] != rows[1::2]
    num_windows = (stores[0].num_tokens - 1) // 12 - 1
    alone = make_loader(stores[:1]).batch(np.arange(num_windows))["tokens"]
    assert len({tuple(row) for row in alone.tolist()}) == num_windows


def test_an_edit_neither_skips_nor_repeats_a_window(stores):
    """Each store's windows, one after the other, are those that it gives alone; before the edit the batches are as they were."""
    edited, before = make_loader(stores, (3, 1), [(50, (1, 5))]).batch(np.arange(150)), make_loader(stores, (3, 1)).batch(np.arange(50))
    for name, values in before.items():
        assert np.array_equal(edited[name][:50], values)
    from_b = (edited["tokens"] > 30000).any(axis=1)
    assert abs(from_b[50:].sum() - 100 * 5 / 6) < 2
    for number, mine in enumerate((~from_b, from_b)):
        alone = make_loader(stores, tuple(10**4 if k == number else 1 for k in range(2))).batch(np.arange(150))["tokens"]
        is_own = (alone > 30000).any(axis=1) == bool(number)
        assert np.array_equal(edited["tokens"][mine], alone[is_own][: mine.sum()])


def test_megatron_order_of_one_store_is_megatrons(stores):
    from mtnlg.data.megatron_order import MegatronOrder

    order = MegatronOrder(stores[0].document_starts, 12, 3, 200)
    batch = make_loader(stores[:1], order="megatron").batch(np.array([0, 199]))
    for row, spans in enumerate(order.spans(np.array([0, 199]))):
        window = np.concatenate([stores[0].read(*span) for span in spans])
        assert batch["tokens"][row].tolist() == window[:-1].tolist() and batch["targets"][row, -1] == window[-1]


@pytest.mark.parametrize("weights", [(1, 1), (5, 1), (1, 9)])
def test_megatron_order_has_every_sample_of_a_blend(stores, weights):
    make_loader(stores, weights, order="megatron", num_samples=333).batch(np.arange(333))


def test_reset_by_hand(tmp_path):
    store = make_store(tmp_path, "s", [[5, 6, EOD], [EOD], [7, 8, 9, 4]])
    batch = make_loader([store], seq_len=7, reset_at_documents=True).batch(np.arange(1))
    assert batch["tokens"].tolist() == [[5, 6, EOD, EOD, 7, 8, 9]]
    assert batch["targets"].tolist() == [[6, EOD, EOD, 7, 8, 9, 4]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 3, 3, 3]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 0, 1, 2]]


@settings(max_examples=40, deadline=None)
@given(numbers=st.lists(st.integers(0, 10**6), min_size=1, max_size=5), seq_len=st.integers(1, 60))
def test_segments_restart_after_each_eod(stores, numbers, seq_len):
    batch = make_loader(stores, (1, 1), seq_len=seq_len, reset_at_documents=True).batch(np.array(numbers))
    for tokens, segments, positions in zip(*(batch[k].tolist() for k in ("tokens", "segment_ids", "positions")), strict=True):
        segment, position = 1, 0
        for i, token in enumerate(tokens):
            assert (segments[i], positions[i]) == (segment, position)
            position += 1
            if token == EOD:
                segment, position = segment + 1, 0


def test_short_stores(stores):
    for order in ("feistel", "megatron"):
        with pytest.raises(DataError, match=rf"less than one window of 9001 \({stores[0].prefix}\)\. Try: .*seq_len="):
            make_loader(stores, (1, 1), seq_len=9000, order=order)


@settings(max_examples=60, deadline=None)
@given(seq_len=st.integers(1, 40), batch_size=st.integers(1, 7), limit=st.none() | st.integers(1, 3000))
def test_heldout_scores_each_token_once(stores, seq_len, batch_size, limit):
    heldout = make_heldout(stores[0], seq_len=seq_len)
    stream = stores[0].read(0, stores[0].num_tokens)
    assert heldout.num_targets == len(stream) - 1
    batches = list(heldout.batches(batch_size, limit))
    scored = []
    for batch in batches:
        real = batch["weights"] == 1
        assert all(values.shape == (batch_size, seq_len) for values in batch.values())
        assert np.array_equal(real, batch["segment_ids"] == 1)
        assert (batch["weights"][~real] == 0).all() and (batch["segment_ids"][~real] == 0).all()
        assert (batch["positions"] == np.arange(seq_len)).all()  # in padding too: a later place is never visible
        assert (batch["targets"][:, :-1] == batch["tokens"][:, 1:])[real[:, :-1] & real[:, 1:]].all()
        scored += batch["targets"][real].tolist()
    assert scored == stream[1:][:limit].tolist()
    assert all((batch["weights"] == 1).all() for batch in batches[:-1])


def test_heldout_of_one_token(tmp_path):
    with pytest.raises(DataError, match=r"one token.*Try: a larger --config\.data\.heldout_fraction"):
        make_heldout(make_store(tmp_path, "s", [[1]]), seq_len=4)


def test_heldout_resets_as_training_does(tmp_path):
    store = make_store(tmp_path, "s", [[5, 6, EOD], [EOD], [7, 8, 9, 4]])
    (batch,) = make_heldout(store, seq_len=5, reset_at_documents=True).batches(2)
    assert batch["tokens"].tolist() == [[5, 6, EOD, EOD, 7], [8, 9, 0, 0, 0]]
    assert batch["targets"].tolist() == [[6, EOD, EOD, 7, 8], [9, 4, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 3], [1, 1, 0, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch["weights"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]


@pytest.mark.parametrize("order", ["feistel", "megatron"])
def test_an_id_outside_the_vocabulary_is_never_trained_on_or_scored(tmp_path, order):
    """The file has changed since its sidecar was written, so opening it finds nothing."""
    good, bad = (make_store(tmp_path, name, [range(1, 40)]) for name in ("good", "bad"))
    content = bytearray((tmp_path / "bad.bin").read_bytes())
    content[20:22] = b"\xff\xff"
    (tmp_path / "bad.bin").write_bytes(content)
    bad = Store(tmp_path / "bad", vocab_size=65000)
    damage = pytest.raises(DataError, match=r"ids go from \d+ to 65535, the vocabulary has 65000 \(.*bad\.bin\)\. Try: ")
    with damage:
        make_loader([good, bad], (1, 1), order=order).batch(np.arange(40))
    with damage:
        list(make_heldout(bad, seq_len=4).batches(2))


def test_prefetcher_is_ahead_by_its_depth_and_in_order():
    started = []
    with Prefetcher(lambda k: started.append(k) or k * k, range(6), depth=2) as ahead:
        assert next(ahead) == 0 and next(ahead) == 1
        assert list(ahead) == [4, 9, 16, 25]
    assert started == list(range(6))


def test_prefetcher_raises_where_the_result_would_have_been():
    def function(k):
        if k == 2:
            raise DataError("damaged", "here")
        return k

    with Prefetcher(function, range(5)) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        with pytest.raises(DataError, match="damaged"):
            next(ahead)
        assert list(ahead) == [3, 4]


def test_prefetcher_runs_ahead_by_its_depth_and_ends_its_thread():
    taken, ran, threads = [], [], threading.active_count()

    def arguments():
        for k in range(100):
            taken.append(k)
            yield k

    with Prefetcher(lambda k: ran.append(k) or k, arguments(), depth=2) as ahead:
        assert taken == [0, 1]
        assert next(ahead) == 0 and taken == [0, 1, 2]
        assert next(ahead) == 1 and taken == [0, 1, 2, 3]
    assert ran == list(range(len(ran))) and len(ran) <= 4
    assert threading.active_count() == threads
