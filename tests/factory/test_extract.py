"""Every kind of input gives the documents that are in it, whatever the number of workers and with or without a kill."""

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import types

import corpora
import pytest
import zstandard
from corpora import content, read, run
from warcs import PAGE, SENTENCES, page, response, warc

from mtnlg.core.errors import ConfigError, DataError, MissingInput, TemporaryFailure
from mtnlg.corpus import sources

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("trafilatura")
from pyarrow import parquet  # noqa: E402

ROWS = [{"text": f"Row {n} of a table.", "url": f"http://a.example/{n}", "score": n / 7} for n in range(50)]


def texts(folder):
    return [(document["id"], document["text"]) for document in read(folder)]


def lines(documents):
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


@pytest.fixture
def mixed(tmp_path):
    """A folder with two documents of every kind, and what is in it by id."""
    root, expected = tmp_path / "mixed", {}
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("One text.\nWith two lines.")
    (root / "b.txt.gz").write_bytes(gzip.compress(b"A packed text."))
    (root / "code.py").write_text("print('hello')\n")
    (root / "deep" / "bom.md").write_bytes(b"\xef\xbb\xbf# A title")
    (root / "deep" / "wide.txt").write_bytes("Größe".encode("utf-16"))
    (root / "d.jsonl").write_bytes(lines([{"text": "one"}, {"text": "two", "id": 7, "more": [1]}]))
    (root / "d2.jsonl.zst").write_bytes(zstandard.compress(lines([{"text": "three"}])))
    (root / "page.html").write_bytes(page(3))
    (root / "crawl.warc.gz").write_bytes(b"".join(gzip.compress(warc([response(page(n), number=n)])) for n in range(2)))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:2]), root / "t.parquet")
    (root / "picture.png").write_bytes(b"\x89PNG")
    expected |= {"mixed/a.txt": "One text.\nWith two lines.", "mixed/b.txt.gz": "A packed text.", "mixed/code.py": "print('hello')\n"}
    expected |= {"mixed/deep/bom.md": "# A title", "mixed/deep/wide.txt": "Größe", "mixed/d.jsonl:1": "one", "7": "two"}
    expected |= {"mixed/d2.jsonl.zst:1": "three", "mixed/page.html": PAGE(3), "urn:uuid:0": PAGE(0), "urn:uuid:1": PAGE(1)}
    expected |= {"mixed/t.parquet:1": ROWS[0]["text"], "mixed/t.parquet:2": ROWS[1]["text"]}
    return root, expected


def test_a_folder_of_everything(mixed, tmp_path):
    root, expected = mixed
    tally = run("extract", str(root), tmp_path / "out")
    assert dict(texts(tmp_path / "out")) == expected
    assert tally.counts["files"] == {"html": 1, "json": 2, "parquet": 1, "text": 5, "warc": 1}
    assert tally.counts["files passed over"] == {".png": 1}
    by_id = {document["id"]: document for document in read(tmp_path / "out")}
    assert by_id["7"]["more"] == [1] and {document["source"] for document in by_id.values()} == {"mixed"}
    assert by_id["urn:uuid:1"]["url"] == "http://a.example/1" and by_id["urn:uuid:1"]["date"] == "2021-01-25T00:00:00Z"
    assert by_id["mixed/t.parquet:2"]["url"] == ROWS[1]["url"] and "score" not in by_id["mixed/t.parquet:2"]


def test_workers_and_kills_change_no_byte(mixed, tmp_path):
    root, _ = mixed
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), root / "t.parquet", row_group_size=20)
    for workers in (1, 2, 4):
        run("extract", str(root), tmp_path / str(workers), part_bytes=400, num_workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    assert len(content(tmp_path / "1")) > 5
    for after in (2, 5, 9):
        code = [sys.executable, "-c", KILLED, str(root), str(tmp_path / "killed"), str(after)]
        assert subprocess.run(code).returncode == -signal.SIGKILL
    run("extract", str(root), tmp_path / "killed", part_bytes=400)
    assert content(tmp_path / "killed") == content(tmp_path / "1")


KILLED = (
    corpora.KILLED
    + """
if __name__ == "__main__":
    registry.make("extract", {}).run((sys.argv[1],), sys.argv[2], Machine(1, 400, progress=False))
"""
)


def test_pythons_own_library(tmp_path):
    run("extract", "python", tmp_path / "out")
    found = {document["id"]: document["text"] for document in read(tmp_path / "out")}
    expected = {f"python/{d.id}": d.text for d in sources.documents("python", max_document_bytes=10_000_000)}
    assert {id for id in expected if id not in found} == {id for id, text in expected.items() if not text.strip()}
    assert all(expected[id].removeprefix("\ufeff") == text for id, text in found.items()) and len(found) > 400


def test_source_and_the_name_of_the_text(corpus, tmp_path):
    path = corpus([{"body": "a text", "text": "a title", "source": "elsewhere"}, {"text": "no body"}])
    tally = run("extract", path, tmp_path / "out", text="body", source="CC")
    assert [(d["text"], d["source"]) for d in read(tmp_path / "out")] == [("a text", "CC")]
    assert tally.counts["unreadable"] == {"no text": 1}


def test_columns_of_parquet(tmp_path):
    table = pyarrow.table({"body": pyarrow.array(["one", None, "two"]).dictionary_encode(), "id": [5, 6, 7], "date": ["x", "y", None]})
    parquet.write_table(table, tmp_path / "t.parquet")
    tally = run("extract", str(tmp_path / "t.parquet"), tmp_path / "out", text="body", fields="id,date,other")
    assert read(tmp_path / "out") == [
        {"id": "5", "text": "one", "source": "t.parquet", "date": "x"},
        {"id": "7", "text": "two", "source": "t.parquet"},
    ]
    assert tally.counts["unreadable"] == {"no text": 1}


def test_what_is_asked_for_must_be_there(tmp_path):
    with pytest.raises(MissingInput, match="no file or folder"):
        run("extract", str(tmp_path / "nothing"), tmp_path / "out")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a.png' is nothing that is read .*Try: JSONL, Parquet"):
        run("extract", str(tmp_path / "a.png"), tmp_path / "out")
    with pytest.raises(DataError, match="nothing to read in this folder"):
        run("extract", str(tmp_path), tmp_path / "out")
    with pytest.raises(ConfigError, match="no language of jusText"):
        run("extract", "python", tmp_path / "out", html="justext", stopwords="Klingon")


def test_a_stage_is_read_like_any_folder(mixed, tmp_path):
    root, _ = mixed
    run("extract", str(root), tmp_path / "first")
    run("extract", str(tmp_path / "first"), tmp_path / "second")
    assert read(tmp_path / "first") == read(tmp_path / "second")


@pytest.fixture
def fake_hub(monkeypatch):
    """A module `datasets` whose only data set is `owner/stories`."""

    def load_dataset(name, config, *, split, streaming):
        assert streaming
        if (name, config, split) == ("owner/offline", None, "train"):
            raise ConnectionError("no route to the hub")
        if (name, config, split) not in (("owner/stories", None, "train"), ("owner/stories", "de", "test")):
            raise ValueError("unknown\nand more")
        return ({"text": f"{config} {split} {n}", "url": None, "other": 1} for n in range(3))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


@pytest.mark.parametrize("name, said", [("hf:owner/stories", "None train"), ("hf:owner/stories:de:test", "de test")])
def test_a_data_set_of_the_hub(fake_hub, tmp_path, name, said):
    run("extract", name, tmp_path / "out")
    assert read(tmp_path / "out") == [{"id": f"{name}:{n + 1}", "text": f"{said} {n}", "source": "stories"} for n in range(3)]


def test_a_data_set_that_cannot_be_had(fake_hub, tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: unknown \("):
        run("extract", "hf:owner/nothing", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="names no data set"):
        run("extract", "hf:a:b:c:d", tmp_path / "form")
    with pytest.raises(TemporaryFailure, match="no route to the hub"):
        run("extract", "hf:owner/offline", tmp_path / "offline")
    assert not (tmp_path / "form").exists()


def test_without_the_library_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hub\]'"):
        run("extract", "hf:owner/stories", tmp_path / "out")


def test_links_lead_nowhere_but_inside(tmp_path):
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (root / "inside" / "a.txt").write_text("inside")
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(tmp_path / "secret.txt", root / "out.txt")
    os.symlink("../root/inside/a.txt", root / "in.txt")
    os.symlink("gone.txt", root / "gone.txt.txt")
    os.symlink(tmp_path, root / "up")
    tally = run("extract", str(root), tmp_path / "out")
    assert texts(tmp_path / "out") == [("root/in.txt", "inside"), ("root/inside/a.txt", "inside")]
    assert {entry["where"]: entry["reason"] for entry in tally.quarantine} == {
        "root/out.txt": "a link that leads out of the folder",
        "root/gone.txt.txt": "a link that leads nowhere",
        "root/up": "a link to a folder",
    }


def test_pages_by_both_rules(tmp_path):
    (tmp_path / "page.html").write_bytes(page(4))
    run("extract", str(tmp_path / "page.html"), tmp_path / "t")
    run("extract", str(tmp_path / "page.html"), tmp_path / "j", html="justext")
    (by_trafilatura,), (by_justext,) = read(tmp_path / "t"), read(tmp_path / "j")
    for document in (by_trafilatura, by_justext):
        assert SENTENCES[0] in document["text"] and "Contact us" not in document["text"]


@pytest.mark.parametrize("seed", range(40))
def test_the_linear_rule_of_justext_is_the_librarys(seed):
    justext = pytest.importorskip("justext.core")
    from mtnlg.factory.raw import boilerplate

    chance = random.Random(seed)

    def paragraphs():
        chance.seed(seed)
        return [Paragraph(chance) for _ in range(chance.randrange(60))]

    ours, theirs = paragraphs(), paragraphs()
    boilerplate.revise(ours)
    justext.revise_paragraph_classification(theirs)
    assert [p.class_type for p in ours] == [p.class_type for p in theirs]


class Paragraph:
    def __init__(self, chance):
        self.cf_class, self.class_type = chance.choice(["short", "neargood", "good", "bad"]), ""
        self.heading, self.text = chance.random() < 0.4, "x" * chance.choice([1, 20, 90, 150, 250])


@pytest.mark.parametrize("seed", range(5))
def test_warc_is_cut_as_warcio_cuts_it(seed):
    archive = pytest.importorskip("warcio.archiveiterator")
    from mtnlg.factory.raw import warc as ours

    chance = random.Random(seed)
    kinds = ["response", "request", "metadata"]
    records = [(chance.choice(kinds), n, response(page(n), number=n)[2][: chance.choice([None, 400])]) for n in range(20)]
    records[0] = (
        "response",
        0,
        response(b"5\r\nhello\r\n0\r\n\r\n", headers=b"Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n")[2],
    )
    content = warc(records)
    found = [ours.page(piece) for _, piece in ours.pieces(io.BytesIO(content))]
    bodies = [
        (record.rec_headers.get_header("WARC-Target-URI"), record.content_stream().read())
        for record in archive.ArchiveIterator(io.BytesIO(content))
        if record.rec_type == "response"
    ]
    assert [(page.about["warc-target-uri"], page.body) for page in found] == bodies


def test_numbers_of_parquet_with_gaps(tmp_path):
    """As pandas writes them: whole numbers as floats, and NaN for what is missing."""
    table = pyarrow.table({"id": [1.0, 2.0], "text": ["one", "two"], "score": [1.0, float("nan")]})
    parquet.write_table(table, tmp_path / "a.parquet")
    run("extract", str(tmp_path / "a.parquet"), tmp_path / "out", fields=("id", "score"))
    first, second = read(tmp_path / "out")
    assert (first["id"], second["id"]) == ("1", "2") and "score" not in second
    assert first["score"] == 1.0 and isinstance(first["score"], float)
