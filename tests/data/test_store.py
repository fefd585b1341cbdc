import hashlib
import json
import pathlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import CannotWrite, DataError, MissingInput, TemporaryFailure
from mtnlg.data import store as store_module
from mtnlg.data.store import Store, StoreWriter

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 70]]


def write(prefix, documents=DOCUMENTS, vocab_size=100):
    with StoreWriter(prefix, tokenizer_sha256="f00d", vocab_size=vocab_size) as writer:
        for ids in documents:
            writer.add(ids, num_bytes=10)
    return prefix


def handmade(documents, code, letter):
    """(.bin, .idx) from the description of the format alone."""
    size = struct.calcsize(letter)
    lengths = [len(ids) for ids in documents]
    offsets = [sum(lengths[:i]) * size for i in range(len(documents))]
    idx = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(documents), len(documents) + 1)
    idx += struct.pack(f"<{len(documents)}i", *lengths)
    idx += struct.pack(f"<{len(documents)}q", *offsets)
    idx += struct.pack(f"<{len(documents) + 1}q", *range(len(documents) + 1))
    return b"".join(struct.pack(f"<{len(ids)}{letter}", *ids) for ids in documents), idx


@pytest.fixture
def prefix(tmp_path):
    return tmp_path / "store.v1"  # a dot that is not a suffix


def listing(prefix):
    return sorted(path.name for path in prefix.parent.iterdir())


@pytest.mark.parametrize("vocab_size, code, letter", [(65499, 8, "H"), (65500, 4, "i"), (100, 8, "H")])
def test_written_bytes_equal_the_handmade_file(prefix, vocab_size, code, letter):
    write(prefix, vocab_size=vocab_size)
    bin_bytes, idx_bytes = handmade(DOCUMENTS, code, letter)
    assert (prefix.parent / "store.v1.bin").read_bytes() == bin_bytes
    assert (prefix.parent / "store.v1.idx").read_bytes() == idx_bytes


def test_an_index_written_in_pieces(prefix, monkeypatch):
    monkeypatch.setattr(store_module, "_INDEX_DOCUMENTS", 2)
    for count in range(6):
        write(prefix, [[1] * n for n in range(count)])
        assert (prefix.parent / "store.v1.idx").read_bytes() == handmade([[1] * n for n in range(count)], 8, "H")[1]


@pytest.mark.parametrize("code, letter", [(1, "B"), (4, "i"), (5, "q"), (8, "H")])
def test_a_handmade_file_is_read(prefix, code, letter):
    for suffix, content in zip((".bin", ".idx"), handmade(DOCUMENTS, code, letter), strict=True):
        (prefix.parent / f"store.v1{suffix}").write_bytes(content)
    store = Store(prefix, vocab_size=71)
    assert store.sidecar is None
    assert store.read(0, 7).tolist() == [1, 2, 3, 4, 5, 6, 70] and store.read(0, 7).dtype == np.int32
    assert store.document_starts.tolist() == [0, 3, 4, 7] and store.document_starts.dtype == np.int64
    with pytest.raises(DataError, match=r"ids go from 1 to 70, the vocabulary has 70 .*store\.v1\.bin.*Try: .*vocab_size=71"):
        Store(prefix, vocab_size=70)


def test_a_document_of_several_sequences(prefix):
    bin_bytes, idx_bytes = handmade(DOCUMENTS, 8, "H")
    idx_bytes = idx_bytes[:26] + struct.pack("<Q", 3) + idx_bytes[34 : 34 + 36] + struct.pack("<3q", 0, 2, 3)
    (prefix.parent / "store.v1.bin").write_bytes(bin_bytes)
    (prefix.parent / "store.v1.idx").write_bytes(idx_bytes)
    assert Store(prefix).document_starts.tolist() == [0, 4, 7]


@settings(max_examples=40, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 70000), max_size=9), min_size=1, max_size=9).filter(any))
def test_round_trip(tmp_path_factory, documents):
    store = Store(write(tmp_path_factory.mktemp("round") / "s", documents, 70001), vocab_size=70001)
    flat = [id for ids in documents for id in ids]
    assert store.read(0, store.num_tokens).tolist() == flat
    assert np.diff(store.document_starts).tolist() == [len(ids) for ids in documents]
    assert store.sidecar == {
        "format_version": 1,
        "tokenizer_sha256": "f00d",
        "vocab_size": 70001,
        "max_id": max(flat),
        "num_tokens": len(flat),
        "num_documents": len(documents),
        "num_bytes": 10 * len(documents),
        "eod_id": None,
        "bin_sha256": hashlib.sha256(pathlib.Path(f"{store.prefix}.bin").read_bytes()).hexdigest(),
        "idx_sha256": hashlib.sha256(pathlib.Path(f"{store.prefix}.idx").read_bytes()).hexdigest(),
    }


def test_read_refuses_to_leave_the_stream(prefix):
    store = Store(write(prefix))
    assert store.read(6, 1).tolist() == [70]
    for start, count in [(6, 2), (-1, 1), (8, 0), (3, -1)]:
        with pytest.raises(IndexError):
            store.read(start, count)


def test_ids_outside_the_vocabulary(prefix):
    for bad in ([100], [-1]):
        with pytest.raises(DataError, match=r"document 0 has ids .*vocabulary has 100 .*store\.v1\.bin.*Try: the tokenizer"):
            write(prefix, [bad])
    assert listing(prefix) == []
    write(prefix)
    with pytest.raises(DataError, match=r"ids go from 0 to 70, the vocabulary has 50 .*Try: .*model\.vocab_size=71"):
        Store(prefix, vocab_size=50)


def test_the_sidecar_is_believed_only_when_it_agrees(prefix):
    path = write(prefix).parent / "store.v1.json"
    sidecar = json.loads(path.read_text())
    path.write_text(json.dumps(sidecar | {"max_id": 7}))
    Store(prefix, vocab_size=8)  # believed: no scan
    path.write_text(json.dumps(sidecar | {"max_id": 7, "num_tokens": 8}))
    assert Store(prefix).sidecar is None
    with pytest.raises(DataError, match="ids go from 1 to 70"):
        Store(prefix, vocab_size=8)
    path.write_text('{"format_version": 1, "num_')
    with pytest.raises(DataError, match=r"sidecar is damaged.*store\.v1\.json.*Try: prepare"):
        Store(prefix)


@pytest.mark.parametrize(
    "suffix, change, message",
    [
        (".idx", lambda b: b[:-1], "the index has"),
        (".idx", lambda b: b[:20], "cut off"),
        (".idx", lambda b: b[:3], "it starts with b'MMI'"),
        (".idx", lambda b: b"", "it starts with b''"),
        (".idx", lambda b: b"TNTIDX\0\0\0" + b[9:], "it starts with"),
        (".idx", lambda b: b[:9] + struct.pack("<Q", 2) + b[17:], "index version 2"),
        (".idx", lambda b: b[:17] + b"\x06" + b[18:], "dtype code 6"),
        (".idx", lambda b: b[:18] + struct.pack("<Q", 2**62) + b[26:], "the index has"),
        (".idx", lambda b: b[:34] + struct.pack("<i", -3) + b[38:], "back to back"),
        (".idx", lambda b: b[:46] + struct.pack("<q", 2) + b[54:], "back to back"),
        (".idx", lambda b: b[:78] + struct.pack("<q", 9) + b[86:], "document boundaries"),
        (".bin", lambda b: b[:-1], "the file has 13 bytes, its index promises 14"),
        (".bin", lambda b: b + b"\0\0", "the file has 16 bytes"),
    ],
)
def test_damaged_files_are_named_with_a_cure(prefix, suffix, change, message):
    path = write(prefix).parent / f"store.v1{suffix}"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        Store(prefix)
    assert message in str(caught.value) and f"store.v1{suffix}" in str(caught.value)
    assert str(caught.value).endswith("Try: prepare the data again")


@pytest.mark.parametrize("documents", [[], [[]]])
def test_an_empty_store(prefix, documents):
    write(prefix, documents)
    with pytest.raises(DataError, match=r"holds no tokens .*store\.v1\.idx.*Try: "):
        Store(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file(prefix, suffix):
    (write(prefix).parent / f"store.v1{suffix}").unlink()
    with pytest.raises(MissingInput, match=rf"no such file .*store\.v1\{suffix}.*Try: prepare") as caught:
        Store(prefix)
    assert caught.value.exit_code == 66


def test_an_exception_leaves_nothing_new_and_the_older_store_whole(prefix):
    write(prefix)
    before = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}
    with pytest.raises(KeyboardInterrupt), StoreWriter(prefix, tokenizer_sha256="", vocab_size=9) as writer:
        writer.add([1])
        raise KeyboardInterrupt
    assert {path.name: path.read_bytes() for path in prefix.parent.iterdir()} == before


def test_a_writer_that_died_leaves_no_store(prefix):
    writer = StoreWriter(prefix, tokenizer_sha256="", vocab_size=9)
    writer.add([1])
    writer._file.flush()
    with pytest.raises(MissingInput):
        Store(prefix)
    writer._discard()


@pytest.mark.parametrize("file", ["bin", "idx", "json"])
def test_a_full_disk(prefix, file):
    """/dev/full refuses every byte, as a full disk does."""
    write(prefix)
    before = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}
    (prefix.parent / f"store.v1.{file}.tmp").symlink_to("/dev/full")
    with pytest.raises(
        TemporaryFailure, match=r"\d+ bytes at least are needed, \d+ are free.*before is untouched.*store\.v1.*Try:"
    ) as caught:
        write(prefix, [[8] * 9])
    assert caught.value.exit_code == 75
    assert {path.name: path.read_bytes() for path in prefix.parent.iterdir()} == before


def test_a_full_disk_in_the_middle(prefix):
    (prefix.parent / "store.v1.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(TemporaryFailure), StoreWriter(prefix, tokenizer_sha256="", vocab_size=9) as writer:
        for _ in range(100):
            writer.add([1] * 1000)
    assert listing(prefix) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match=r"cannot write: .*file/s\.bin.*Try: another") as caught:
        write(tmp_path / "file" / "s")
    assert caught.value.exit_code == 73
