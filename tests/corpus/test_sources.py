import gzip
import json
import random
import sys
import sysconfig
import tracemalloc
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import pytest
import zstandard

from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.corpus import sources

LIMIT = 10_000_000
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def read(source, limit=LIMIT, drops=None):
    return [(d.id, d.text) for d in sources.documents(str(source), max_document_bytes=limit, drops=drops)]


def lines(*records) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


@pytest.mark.parametrize("packing", PACK)
def test_jsonl_and_its_packed_forms_are_equal(tmp_path, packing):
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](lines({"text": "eins\r\nzwei"}, {"text": "drei ☃", "id": 7}, {"id": None, "text": "\ufeff\0"})))
    name = path.name
    assert read(path) == [(f"{name}:1", "eins\r\nzwei"), ("7", "drei ☃"), (f"{name}:3", "\ufeff\0")]


@pytest.mark.parametrize("packing", PACK)
def test_txt_and_its_packed_forms_are_one_document(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACK[packing]("zeile\r\n\r\nmehr ☃ \n".encode()))
    assert read(path) == [(path.name, "zeile\r\n\r\nmehr ☃ \n")]


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_packed_files_of_several_frames_are_read_to_the_end(tmp_path, packing):
    first, second = b"ab\n" * 100_000, random.Random(0).randbytes(200_000).hex().encode()
    (tmp_path / f"a.txt{packing}").write_bytes(PACK[packing](first) + PACK[packing](second))
    assert read(tmp_path)[0][1].encode() == first + second


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("kept", [0.2, 0.9, 1 - 1e-9])
def test_packed_file_cut_short_is_damaged(tmp_path, packing, kind, kept):
    content = lines(*({"text": random.Random(i).randbytes(30).hex()} for i in range(3000)))
    packed = PACK[packing](content)
    path = tmp_path / f"a.{kind}{packing}"
    path.write_bytes(packed[: int(len(packed) * kept)])
    with pytest.raises(DataError, match=rf"cut short.*a\.{kind}{packing}.*Try: a fresh copy"):
        read(path)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_file_that_is_not_packed_is_damaged(tmp_path, packing):
    (tmp_path / f"a.txt{packing}").write_bytes(b"plain text in disguise")
    with pytest.raises(DataError, match=rf"a\.txt{packing}"):
        read(tmp_path)


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"text": "a"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"text"', "a JSON str, not an object"),
        (b'{"txt": "a", "id": 1}', "no key `text`; its keys are txt, id"),
        (b"{}", "its keys are none"),
        (b'{"text": 3}', "`text` is a int"),
    ],
)
def test_bad_line_names_file_and_line(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError) as error:
        read(path)
    assert said in str(error.value) and f"{path}:3" in str(error.value) and "Try: " in str(error.value)


def test_what_is_left_out_is_counted(tmp_path):
    good = [b'{"text": "one"}', b'{"text": "two"}']
    bad = [b'{"text": "' + b"x" * 50 + b'"}', b'{"text": "\xff"}', rb'{"text": "\ud800"}', b'{"text": ""}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good[0], *bad, b"  ", good[1]]))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "c.txt").write_bytes(b"")
    drops = Counter({"empty": 1})
    assert read(tmp_path, limit=50, drops=drops) == [("a.jsonl:1", "one"), ("a.jsonl:7", "two")]
    assert drops == {"too long": 1, "invalid utf-8": 3, "empty": 3}


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_limit_is_on_the_line_without_its_end(tmp_path, end):
    line = b'{"text": "a"}'
    (tmp_path / "a.jsonl").write_bytes(line + end)
    assert read(tmp_path, limit=len(line)) == [("a.jsonl:1", "a")]
    with pytest.raises(DataError, match=r"1 too long \(data.source\). Try: a --config.data.max_document_bytes above 12"):
        read(tmp_path, limit=len(line) - 1)


def test_everything_left_out_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_bytes(b"")
    with pytest.raises(DataError, match="1 empty, 1 invalid utf-8.*Try: text in UTF-8"):
        read(tmp_path)


def test_no_text_is_an_error(tmp_path):
    (tmp_path / "readme.md").write_text("not read")
    with pytest.raises(DataError, match=r"no text in .*\.jsonl\.zst"):
        read(tmp_path)


def test_missing_path_names_the_cure():
    with pytest.raises(MissingInput, match=r"no file or folder '/nowhere'.*data\.source.*Try: .*python"):
        read("/nowhere")


def test_unreadable_file_is_missing_input(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(MissingInput, match=r"cannot be read.*a\.txt"):
        read(tmp_path)


def test_other_kind_of_file_lists_what_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"a\.parquet.*one of \.txt, \.txt\.gz, \.txt\.zst, \.jsonl, \.jsonl\.gz, \.jsonl\.zst"):
        read(path)


def test_folder_is_searched_in_sorted_order(tmp_path):
    for name in ("b/2.txt", "b/1.TXT", "a.txt", "b/a/0.txt", "c.jsonl", "b/skipped.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "c"}' if path.suffix == ".jsonl" else name)
    assert [id for id, _ in read(tmp_path)] == ["a.txt", "c.jsonl:1", "b/1.TXT", "b/2.txt", "b/a/0.txt"]


@hypothesis.given(st.text(alphabet="ab\n\r ☃é", max_size=200), st.integers(4, 60))
@hypothesis.settings(max_examples=200, deadline=None)
def test_long_txt_is_cut_and_adds_up(tmp_path_factory, text, limit):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(text.encode())
    hypothesis.assume(text)
    drops = Counter()
    found = read(path, limit, drops)
    assert "".join(t for _, t in found) == text and not drops
    assert all(0 < len(t.encode()) <= limit for _, t in found)
    whole = len(text.encode()) <= limit
    assert [id for id, _ in found] == (["a.txt"] if whole else [f"a.txt#{n}" for n in range(1, len(found) + 1)])


@pytest.mark.parametrize("blank", ["\n\n", "\r\n\r\n"])
def test_long_txt_is_cut_at_the_last_blank_line_that_fits(tmp_path, blank):
    (tmp_path / "a.txt").write_bytes(blank.join(["one\nline", "two", "x" * 12, "four"]).encode())
    assert [t for _, t in read(tmp_path, 20)] == [f"one\nline{blank}two{blank}", f"{'x' * 12}{blank}four"]


def test_without_blank_lines_it_is_cut_at_the_last_line_that_fits(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    assert [t for _, t in read(tmp_path, 12)] == ["one\ntwo\n", "three\nfour\n"]


def test_long_line_is_cut_between_characters(tmp_path):
    (tmp_path / "a.txt").write_text("☃" * 10)
    assert [t for _, t in read(tmp_path, 10)] == ["☃" * 3] * 3 + ["☃"]


def test_python_source_is_the_library_without_its_tests():
    found = read("python")
    ids = [id for id, _ in found]
    assert {"os.py", "json/decoder.py", "asyncio/tasks.py"} <= set(ids) and len(ids) == len(set(ids)) > 400
    assert not {"test", "tests", "idle_test", "site-packages", "__pycache__"} & {part for id in ids for part in id.split("/")}
    size = sum(len(text.encode()) for _, text in found)
    assert 8e6 < size < 25e6
    with open(f"{sysconfig.get_path('stdlib')}/os.py", newline="") as file:
        assert dict(found)["os.py"] == file.read()
    assert ids == [id for id, _ in read("python")]


def peak_bytes(path) -> int:
    tracemalloc.start()
    try:
        number = sum(1 for _ in sources.documents(str(path), max_document_bytes=100_000))
        assert number > 5
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, kind, packing):
    chance = random.Random(0)
    texts = [chance.randbytes(40_000).hex() for _ in range(100)]
    peaks = []
    for number in (10, 100):
        content = lines(*({"text": t} for t in texts[:number])) if kind == ".jsonl" else "\n\n".join(texts[:number]).encode()
        path = tmp_path / f"{number}{kind}{packing}"
        path.write_bytes(PACK[packing](content))
        peaks.append(peak_bytes(path))
    assert peaks[1] < 1.1 * peaks[0] + 50_000 and peaks[1] < 1_500_000 < len(content) / 5, peaks


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_bomb_takes_little_memory(tmp_path, kind, packing):
    path = tmp_path / f"bomb{kind}{packing}"
    path.write_bytes(PACK[packing](lines({"text": "fine"}) * 6 + b"x" * 50_000_000))
    assert path.stat().st_size < 100_000
    assert peak_bytes(path) < 20_000_000


def test_no_import_of_zstandard_without_need(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("plain")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert read(tmp_path) == [("a.txt", "plain")]
