import dataclasses
import errno
import json
import pathlib
import random

import pytest

from mtnlg.core import schema
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput, TemporaryFailure
from mtnlg.corpus import build, manifest
from mtnlg.corpus.build import heldout_text, prepare, train_text
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store, StoreWriter

WORDS = ["the", "of", "and", "licht", "☃", "naïve", "fold(x)", "=", "12,\n", "\t\r\n"]


def write_corpus(folder: pathlib.Path, number: int = 60, seed: int = 0) -> dict[str, list[str]]:
    """{source: its texts}: a `.jsonl` and a folder of `.txt`."""
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS, k=60)) + f" {i}" for i in range(number)]
    lined, folded = texts[: number // 2], texts[number // 2 :]
    (folder / "lined.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lined))
    (folder / "folded").mkdir()
    for i, text in enumerate(folded):
        (folder / "folded" / f"{i:03}.txt").write_bytes(text.encode())
    return {str(folder / "lined.jsonl"): lined, str(folder / "folded"): folded}


def make_config(corpus, vocab_size=320, **data) -> schema.Config:
    data = {"source": tuple(corpus), "heldout_fraction": 0.2, **data}
    return schema.Config(model=schema.Model(vocab_size=vocab_size), data=schema.Data(**data))


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus").mkdir()
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    """A trained tokenizer, and the directory it was trained in."""
    folder = tmp_path_factory.mktemp("trained")
    return prepare(make_config(write_corpus(folder)), folder / "out", progress=False).tokenizer


def contents(directory) -> dict[str, tuple[bytes, int]]:
    """Each file of a directory, with its time of change."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


def decoded(prepared, side) -> list[bytes]:
    """The texts of a prepared store, of which every document must end in eod and hold no other."""
    tokenizer = tokenizers.load(prepared.tokenizer)
    store = Store(side.prefix, vocab_size=tokenizer.vocab_size)
    documents = [list(map(int, store.document(i))) for i in range(store.num_documents)]
    assert all(ids[-1] == tokenizer.eod_id and tokenizer.eod_id not in ids[:-1] for ids in documents)
    return [tokenizer.decode_bytes(ids[:-1]) for ids in documents]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_prepared_stores_decode_to_exactly_the_texts(tmp_path, corpus, kind):
    config = make_config(corpus, tokenizer=kind)
    prepared = prepare(config, tmp_path / "out", progress=False)
    assert [source.name for source in prepared.sources] == ["lined", "folded"]
    for source, texts in zip(prepared.sources, corpus.values(), strict=True):
        train, heldout = decoded(prepared, source.train), decoded(prepared, source.heldout)
        assert train and heldout and sorted(train + heldout) == sorted(text.encode() for text in texts)
        assert train == list(train_text(config, source.name)) and heldout == list(heldout_text(config, source.name))
        for side, held in ((source.train, train), (source.heldout, heldout)):
            assert (side.num_bytes, side.num_documents) == (sum(map(len, held)), len(held))
            assert Store(side.prefix).num_tokens == side.num_tokens
            assert Store(side.prefix).sidecar["tokenizer_sha256"] == tokenizers.load(prepared.tokenizer).sha256


def test_batches_do_not_change_the_stores(tmp_path, corpus, tokenizer_path, monkeypatch):
    config = make_config(corpus, tokenizer=str(tokenizer_path))
    prepare(config, tmp_path / "one", progress=False)
    monkeypatch.setattr(build, "_BATCH_BYTES", 100)
    prepare(config, tmp_path / "two", progress=False)
    assert (tmp_path / "one/lined.train.bin").read_bytes() == (tmp_path / "two/lined.train.bin").read_bytes()
    assert (tmp_path / "one/lined.train.idx").read_bytes() == (tmp_path / "two/lined.train.idx").read_bytes()


def test_one_document_has_both_sides(tmp_path, tokenizer_path):
    (tmp_path / "a.txt").write_text("line\n" * 50)
    prepared = prepare(make_config([str(tmp_path / "a.txt")], tokenizer=str(tokenizer_path)), tmp_path / "out", progress=False)
    (source,) = prepared.sources
    assert decoded(prepared, source.train) + decoded(prepared, source.heldout) == [b"line\n" * 40, b"line\n" * 10]


def test_python_source(tmp_path, tokenizer_path, monkeypatch):
    found = [file for file in build.split.sources.files("python") if file.id.startswith("json/")]
    monkeypatch.setattr(build.split.sources, "files", lambda source: iter(found))
    prepared = prepare(make_config(["python"], tokenizer=str(tokenizer_path)), tmp_path / "out", progress=False)
    (source,) = prepared.sources
    texts = decoded(prepared, source.train) + decoded(prepared, source.heldout)
    assert source.name == "python" and sorted(texts) == sorted(file.path.read_bytes() for file in found) and len(texts) > 3


def test_same_config_reuses_what_is_there(tmp_path, corpus, capfd):
    config = make_config(corpus)
    first = prepare(config, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    assert capfd.readouterr().err == ""
    assert prepare(config, tmp_path / "out") == first
    (line,) = capfd.readouterr().err.splitlines()
    assert "already prepared, used as it is (60 documents" in line
    assert contents(tmp_path / "out") == before


def test_a_moved_directory_is_still_prepared(tmp_path, corpus):
    config = make_config(corpus)
    prepare(config, tmp_path / "out", progress=False)
    (tmp_path / "out").rename(tmp_path / "moved")
    prepared = prepare(config, tmp_path / "moved", progress=False)
    assert prepared.sources[0].train.prefix == tmp_path / "moved" / "lined.train" and prepared.tokenizer.exists()


CHANGES = {
    "data.heldout_fraction": lambda c: {"heldout_fraction": 0.3},
    "data.max_document_bytes": lambda c: {"max_document_bytes": 123_456},
    "data.tokenizer": lambda c: {"tokenizer": "unigram"},
    "data.tokenizer_train_bytes": lambda c: {"tokenizer_train_bytes": 5000},
    "model.vocab_size": lambda c: {"vocab_size": 330},
    "data.source": lambda c: {"source": tuple(c)[:1]},
}


@pytest.mark.parametrize("key", CHANGES)
def test_another_config_is_refused_and_nothing_is_touched(tmp_path, corpus, key):
    prepare(make_config(corpus), tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        prepare(make_config(corpus, **CHANGES[key](corpus)), tmp_path / "out", progress=False)
    said = str(error.value)
    assert said.count(" there, ") == 1 and f"{key} is " in said
    assert str(tmp_path / "out") in said and "another data.directory, or delete" in said
    assert contents(tmp_path / "out") == before


def test_a_changed_file_is_another_corpus(tmp_path, corpus):
    config = make_config(corpus)
    prepare(config, tmp_path / "out", progress=False)
    path = tmp_path / "corpus" / "folded" / "000.txt"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError, match="data.source is .*folded: 30 files.* there, .*folded: 30 files.* now"):
        prepare(config, tmp_path / "out", progress=False)


def test_another_tokenizer_of_the_same_path_is_refused(tmp_path, corpus, tokenizer_path):
    given = tokenizers.load(tokenizer_path).save(tmp_path / "given")
    prepare(make_config(corpus, tokenizer=str(given)), tmp_path / "out", progress=False)
    other = prepare(make_config(corpus, vocab_size=310), tmp_path / "other", progress=False)
    given.write_bytes(other.tokenizer.read_bytes())
    with pytest.raises(ConfigError, match="data.tokenizer is sha256 .* there, sha256 .* now"):
        prepare(make_config(corpus, tokenizer=str(given)), tmp_path / "out", progress=False)


def test_a_given_tokenizer_is_copied_and_its_directory_depends_on_no_training_keys(tmp_path, corpus, tokenizer_path):
    config = make_config(corpus, tokenizer=str(tokenizer_path))
    prepared = prepare(config, tmp_path / "out", progress=False)
    assert prepared.tokenizer.is_relative_to(tmp_path / "out" / "tokenizer")
    assert tokenizers.load(prepared.tokenizer).sha256 == tokenizers.load(tokenizer_path).sha256
    more = make_config(corpus, vocab_size=400, tokenizer=str(tokenizer_path), tokenizer_train_bytes=5)
    assert prepare(more, tmp_path / "out", progress=False) == prepared


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path, corpus, tokenizer_path):
    size = tokenizers.load(tokenizer_path).vocab_size
    with pytest.raises(ConfigError, match=rf"has {size} tokens.*model.vocab_size={size - 1}.*Try: --config.model.vocab_size={size}"):
        prepare(make_config(corpus, vocab_size=size - 1, tokenizer=str(tokenizer_path)), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_missing_tokenizer_is_missing_input(tmp_path, corpus):
    with pytest.raises(MissingInput):
        prepare(make_config(corpus, tokenizer=str(tmp_path / "none.model")), tmp_path / "out", progress=False)


def test_few_pieces_are_told(tmp_path, corpus, capfd):
    prepare(make_config(corpus, vocab_size=5000), tmp_path / "out")
    assert "the text is too short for model.vocab_size=5000" in capfd.readouterr().err


def test_off_a_terminal_a_line_tells_of_each_source(tmp_path, corpus, tokenizer_path, capfd):
    (tmp_path / "corpus" / "folded" / "bad.txt").write_bytes(b"\xff")
    prepare(make_config(corpus, tokenizer=str(tokenizer_path)), tmp_path / "out")
    lined, folded = capfd.readouterr().err.splitlines()
    assert lined.startswith("lined: 30 documents, ") and lined.endswith(" MB/s")
    assert folded.startswith("folded: 30 documents, ") and folded.endswith(" MB/s; left out: 1 invalid utf-8")


def test_a_half_finished_directory_is_made_anew(tmp_path, corpus, tokenizer_path):
    config = make_config(corpus, tokenizer=str(tokenizer_path))
    whole = prepare(config, tmp_path / "whole", progress=False)
    prepare(config, tmp_path / "out", progress=False)
    (tmp_path / "out" / manifest.FILE).unlink()
    (tmp_path / "out" / "lined.train.bin").write_bytes(b"rubbish")
    (tmp_path / "out" / "lined.train.idx").unlink()
    again = prepare(config, tmp_path / "out", progress=False)
    assert decoded(again, again.sources[0].train) == decoded(whole, whole.sources[0].train)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["add", "manifest", "tokenizer"])
def test_a_full_disk_is_temporary_and_harms_nothing(tmp_path, corpus, tokenizer_path, monkeypatch, place):
    config = make_config(corpus, tokenizer=str(tokenizer_path))
    earlier = prepare(config, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patch:
        if place == "add":
            calls = []
            add = StoreWriter.add
            patch.setattr(StoreWriter, "add", lambda *a, **k: full_disk() if len(calls) > 20 else (calls.append(1), add(*a, **k)))
        elif place == "manifest":
            patch.setattr(manifest.os, "replace", full_disk)
        else:
            patch.setattr(tokenizers.Tokenizer, "save", full_disk)
        with pytest.raises(TemporaryFailure, match="disk is full.*Try: free space"):
            prepare(config, tmp_path / "new", progress=False)
        assert not (tmp_path / "new" / manifest.FILE).exists()
        with pytest.raises(ConfigError):
            prepare(dataclasses.replace(config, data=dataclasses.replace(config.data, heldout_fraction=0.5)), tmp_path / "out")
        assert prepare(config, tmp_path / "out", progress=False) == earlier
    assert contents(tmp_path / "out") == before
    again = prepare(config, tmp_path / "new", progress=False)
    assert decoded(again, again.sources[1].train) == decoded(earlier, earlier.sources[1].train)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path, corpus, tokenizer_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CannotWrite, match="cannot write.*data.directory"):
        prepare(make_config(corpus, tokenizer=str(tokenizer_path)), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    "damage", [lambda c: "", lambda c: "[]", lambda c: '{"fingerprint": 3}', lambda c: c.replace('"train"', '"trains"')]
)
def test_a_damaged_manifest_is_told(tmp_path, corpus, tokenizer_path, damage):
    config = make_config(corpus, tokenizer=str(tokenizer_path))
    prepare(config, tmp_path / "out", progress=False)
    path = tmp_path / "out" / manifest.FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match="manifest is damaged.*manifest.json.*Try: delete"):
        prepare(config, tmp_path / "out", progress=False)


def test_stores_of_another_directory_are_told(tmp_path, corpus, tokenizer_path):
    config = make_config(corpus, tokenizer=str(tokenizer_path))
    prepare(config, tmp_path / "out", progress=False)
    for suffix in ("bin", "idx", "json"):
        (tmp_path / "out" / f"folded.train.{suffix}").write_bytes((tmp_path / "out" / f"lined.train.{suffix}").read_bytes())
    with pytest.raises(DataError, match="not those of the manifest.*folded.train.*Try: delete"):
        prepare(config, tmp_path / "out", progress=False)
