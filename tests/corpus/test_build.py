import concurrent.futures
import io
import itertools
import json
import random
import re
import subprocess
import sys
import time
import tracemalloc

import pytest

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.corpus import build, manifest
from mtnlg.corpus.build import heldout_text, prepare, train_text
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store


def decoded(prepared, side) -> list[bytes]:
    """The texts of a prepared store, of which every document must end in eod and hold no other."""
    tokenizer = tokenizers.load(prepared.tokenizer)
    held = Store(side.prefix, vocab_size=tokenizer.vocab_size)
    documents = [held.read(start, end - start).tolist() for start, end in itertools.pairwise(held.document_starts.tolist())]
    assert all(ids[-1] == tokenizer.eod_id and tokenizer.eod_id not in ids[:-1] for ids in documents)
    return [tokenizer.decode_bytes(ids[:-1]) for ids in documents]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_prepared_stores_decode_to_exactly_the_texts(tmp_path, corpus, kind):
    config = corpus.config(tokenizer=kind)
    prepared = prepare(config, tmp_path / "out", progress=False)
    assert [source.name for source in prepared.sources] == ["lined", "folded"]
    for source, texts in zip(prepared.sources, corpus.texts.values(), strict=True):
        train, heldout = decoded(prepared, source.train), decoded(prepared, source.heldout)
        assert train and heldout and sorted(train + heldout) == sorted(text.encode() for text in texts)
        assert train == list(train_text(config, source.name)) and heldout == list(heldout_text(config, source.name))
        for side, held in ((source.train, train), (source.heldout, heldout)):
            assert (side.num_bytes, side.num_documents) == (sum(map(len, held)), len(held))
            assert Store(side.prefix).num_tokens == side.num_tokens
            assert Store(side.prefix).sidecar["tokenizer_sha256"] == tokenizers.load(prepared.tokenizer).sha256


def test_batches_do_not_change_the_stores(tmp_path, corpus, tokenizer_path, monkeypatch):
    config = corpus.config(tokenizer=tokenizer_path)
    prepare(config, tmp_path / "one", progress=False)
    monkeypatch.setattr(build, "_BATCH_BYTES", 100)
    prepare(config, tmp_path / "two", progress=False)
    assert (tmp_path / "one/lined.train.bin").read_bytes() == (tmp_path / "two/lined.train.bin").read_bytes()
    assert (tmp_path / "one/lined.train.idx").read_bytes() == (tmp_path / "two/lined.train.idx").read_bytes()


def test_one_document_has_both_sides(tmp_path, tokenizer_path, corpus):
    (tmp_path / "a.txt").write_text("line\n" * 50)
    prepared = prepare(corpus.config(source=(str(tmp_path / "a.txt"),), tokenizer=tokenizer_path), tmp_path / "out", progress=False)
    (source,) = prepared.sources
    assert decoded(prepared, source.train) + decoded(prepared, source.heldout) == [b"line\n" * 40, b"line\n" * 10]


def test_python_source(tmp_path, tokenizer_path, monkeypatch, corpus):
    found = [file for file in build.split.sources.files("python") if file.id.startswith("json/")]
    monkeypatch.setattr(build.split.sources, "files", lambda source: iter(found))
    prepared = prepare(corpus.config(source=("python",), tokenizer=tokenizer_path), tmp_path / "out", progress=False)
    (source,) = prepared.sources
    texts = decoded(prepared, source.train) + decoded(prepared, source.heldout)
    assert source.name == "python" and sorted(texts) == sorted(file.path.read_bytes() for file in found) and len(texts) > 3


def test_same_config_reuses_what_is_there(tmp_path, corpus, capfd, contents):
    config = corpus.config()
    first = prepare(config, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    assert capfd.readouterr().err == ""
    assert prepare(config, tmp_path / "out") == first
    (line,) = capfd.readouterr().err.splitlines()
    assert "already prepared, used as it is (60 documents" in line
    assert contents(tmp_path / "out") == before


def test_a_moved_directory_is_still_prepared(tmp_path, corpus):
    config = corpus.config()
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
    "data.source": lambda c: {"source": tuple(c.texts)[:1]},
}


@pytest.mark.parametrize("key", CHANGES)
def test_another_config_is_refused_and_nothing_is_touched(tmp_path, corpus, key, contents):
    prepare(corpus.config(), tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError) as error:
        prepare(corpus.config(**CHANGES[key](corpus)), tmp_path / "out", progress=False)
    said = str(error.value)
    assert said.count(" there, ") == 1 and f"{key} is " in said
    assert str(tmp_path / "out") in said and "--config.data.directory=NEW_FOLDER, or delete" in said
    assert contents(tmp_path / "out") == before


def test_a_changed_file_is_another_corpus(tmp_path, corpus):
    config = corpus.config()
    prepare(config, tmp_path / "out", progress=False)
    path = corpus.folded / "000.txt"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError, match="data.source is .*folded: 30 files.* there, .*folded: 30 files.* now"):
        prepare(config, tmp_path / "out", progress=False)


def test_another_tokenizer_of_the_same_path_is_refused(tmp_path, corpus, tokenizer_path):
    given = tokenizers.load(tokenizer_path).save(tmp_path / "given")
    prepare(corpus.config(tokenizer=str(given)), tmp_path / "out", progress=False)
    other = prepare(corpus.config(vocab_size=310), tmp_path / "other", progress=False)
    given.write_bytes(other.tokenizer.read_bytes())
    with pytest.raises(ConfigError, match="data.tokenizer is sha256 .* there, sha256 .* now"):
        prepare(corpus.config(tokenizer=str(given)), tmp_path / "out", progress=False)


def test_a_given_tokenizer_is_copied_and_its_directory_depends_on_no_training_keys(tmp_path, corpus, tokenizer_path):
    config = corpus.config(tokenizer=tokenizer_path)
    prepared = prepare(config, tmp_path / "out", progress=False)
    assert prepared.tokenizer.is_relative_to(tmp_path / "out" / "tokenizer")
    assert tokenizers.load(prepared.tokenizer).sha256 == tokenizers.load(tokenizer_path).sha256
    more = corpus.config(vocab_size=400, tokenizer=tokenizer_path, tokenizer_train_bytes=5)
    assert prepare(more, tmp_path / "out", progress=False) == prepared


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path, corpus, tokenizer_path):
    size = tokenizers.load(tokenizer_path).vocab_size
    with pytest.raises(ConfigError, match=rf"has {size} tokens.*model.vocab_size={size - 1}.*Try: --config.model.vocab_size={size}"):
        prepare(corpus.config(vocab_size=size - 1, tokenizer=tokenizer_path), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_missing_tokenizer_is_missing_input(tmp_path, corpus):
    with pytest.raises(MissingInput):
        prepare(corpus.config(tokenizer=str(tmp_path / "none.model")), tmp_path / "out", progress=False)


def test_a_tokenizer_smaller_than_the_model_is_told(tmp_path, corpus, tokenizer_path, capfd):
    prepare(corpus.config(vocab_size=5000, tokenizer=tokenizer_path), tmp_path / "out")
    assert "tokenizer: 320 tokens; the others of model.vocab_size=5000 will never occur" in capfd.readouterr().err


def test_a_text_too_small_for_the_vocabulary_names_one_that_works(tmp_path, corpus):
    with pytest.raises(DataError) as error:
        prepare(corpus.config(vocab_size=5000), tmp_path / "out", progress=False)
    size = int(re.search(r"Try: --config.model.vocab_size=(\d+)", str(error.value))[1])
    assert prepare(corpus.config(vocab_size=size), tmp_path / "out", progress=False).sources


def test_off_a_terminal_a_line_tells_of_each_source(tmp_path, corpus, tokenizer_path, capfd):
    (corpus.folded / "bad.txt").write_bytes(b"\xff")
    prepare(corpus.config(tokenizer=tokenizer_path), tmp_path / "out")
    lined, folded = capfd.readouterr().err.splitlines()
    assert lined.startswith("lined: 30 documents, ") and lined.endswith(" MB/s")
    assert folded.startswith("folded: 30 documents, ") and folded.endswith(" MB/s; left out: 1 invalid utf-8")


def test_a_half_finished_directory_is_made_anew(tmp_path, corpus, tokenizer_path):
    config = corpus.config(tokenizer=tokenizer_path)
    whole = prepare(config, tmp_path / "whole", progress=False)
    prepare(config, tmp_path / "out", progress=False)
    (tmp_path / "out" / manifest.FILE).unlink()
    (tmp_path / "out" / "lined.train.bin").write_bytes(b"rubbish")
    (tmp_path / "out" / "lined.train.idx").unlink()
    again = prepare(config, tmp_path / "out", progress=False)
    assert decoded(again, again.sources[0].train) == decoded(whole, whole.sources[0].train)


def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer_path, monkeypatch, corpus):
    monkeypatch.setattr(build, "_BATCH_BYTES", 50_000)
    chance = random.Random(0)
    peaks = []
    for number in (12, 120):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps({"text": " ".join(chance.choices(corpus.words, k=1500))}) + "\n" for _ in range(number)))
        tracemalloc.start()
        prepare(corpus.config(source=(str(path),), tokenizer=tokenizer_path), tmp_path / f"out{number}", progress=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 100_000, peaks


PREPARE_WHEN_TOLD = """
import sys
import time
from mtnlg.corpus import build

def told(*arguments):
    print("holds the lock", flush=True)
    sys.stdin.readline()
    return original(*arguments)

original, build._build = build._build, told
source, tokenizer, out = sys.argv[1:]
config = build.schema.Config(model=build.schema.Model(vocab_size=320), data=build.schema.Data(source=(source,), tokenizer=tokenizer))
build.prepare(config, out)
"""


def test_the_second_of_two_waits_and_finds_everything_prepared(tmp_path, corpus, tokenizer_path, monkeypatch):
    config = schema.Config(model=schema.Model(vocab_size=320), data=schema.Data(source=(str(corpus.lined),), tokenizer=tokenizer_path))
    command = [sys.executable, "-c", PREPARE_WHEN_TOLD, str(corpus.lined), tokenizer_path, str(tmp_path / "out")]
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("prepared twice"))
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())  # capfd's file is cut while the other thread writes to it
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        assert first.stdout.readline() == "holds the lock\n"
        second = pool.submit(prepare, config, tmp_path / "out")
        while f"out: waiting for {first.pid}@" not in said.getvalue() and not second.done():
            time.sleep(0.01)
        first.communicate("\n", timeout=60)
        assert second.result(timeout=60).sources[0].train.num_tokens > 0
    assert re.search(r"waiting for \d+@\S+ since \S+, which prepares it\n.*out: already prepared", said.getvalue())


def test_a_prepared_directory_is_used_without_its_lock(tmp_path, corpus, tokenizer_path):
    """As on a read-only disk."""
    config = corpus.config(tokenizer=tokenizer_path)
    prepared = prepare(config, tmp_path / "out", progress=False)
    (tmp_path / "out" / "lock").unlink()
    assert prepare(config, tmp_path / "out", progress=False) == prepared
    assert not (tmp_path / "out" / "lock").exists()
