"""A folder of tokens as a source to train on: the documents are those of the folder, each once, on one side."""

import itertools

import numpy as np
import pytest

from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.corpus import tokens
from mtnlg.corpus.build import heldout_text, prepare, train_text
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store


@pytest.fixture
def folder(tmp_path, corpus, tokenizer_path):
    """The 60 texts of the corpus as tokens."""
    tokenizer = tokenizers.load(tokenizer_path)
    tokenizer.save(tmp_path / "tokens" / "tokenizer")
    write(tmp_path / "tokens", tokenizer, [text for texts in corpus.texts.values() for text in texts])
    return tmp_path / "tokens"


def write(folder, tokenizer, texts):
    with tokens.writer(folder / "tokens", tokenizer) as writer:
        for text in texts:
            writer.add([*tokenizer.encode(text), tokenizer.eod_id], num_bytes=len(text.encode()))


@pytest.fixture
def config(corpus, folder):
    return lambda **changes: corpus.config(**{"source": (str(folder),), "tokenizer": str(folder / "tokenizer")} | changes)


def documents(prefix) -> list[list[int]]:
    store = Store(prefix)
    return [store.read(start, end - start).tolist() for start, end in itertools.pairwise(store.document_starts.tolist())]


def test_every_document_is_on_one_side(config, folder, tmp_path, corpus, monkeypatch):
    prepared = prepare(config(), tmp_path / "out", progress=False)
    (source,) = prepared.sources
    sides = [documents(side.prefix) for side in (source.train, source.heldout)]
    assert sorted(sides[0] + sides[1]) == sorted(documents(folder / "tokens")) and 4 <= len(sides[1]) <= 20
    texts = [text.encode() for texts in corpus.texts.values() for text in texts]
    read = [list(text(config(), "tokens")) for text in (train_text, heldout_text)]
    assert sorted(read[0] + read[1]) == sorted(texts)
    for side, held in zip((source.train, source.heldout), read, strict=True):
        assert side.num_bytes == sum(map(len, held)) and side.num_documents == len(held)
    monkeypatch.setattr(tokens, "_CHUNK_TOKENS", 100)
    again = prepare(config(), tmp_path / "again", progress=False)
    assert documents(again.sources[0].train.prefix) == sides[0] and documents(again.sources[0].heldout.prefix) == sides[1]


def test_a_document_stays_on_its_side_when_others_come_behind_it(config, folder, tmp_path, corpus):
    first = prepare(config(), tmp_path / "first", progress=False).sources[0]
    tokenizer = tokenizers.load(folder / "tokenizer")
    write(folder, tokenizer, [text for texts in corpus.texts.values() for text in texts] + ["more"] * 40)
    more = prepare(config(), tmp_path / "more", progress=False).sources[0]
    for side in ("train", "heldout"):
        before, now = (documents(getattr(source, side).prefix) for source in (first, more))
        assert now[: len(before)] == before


def test_bytes_of_a_tokenizer_with_a_dummy_prefix(tmp_path):
    import sentencepiece

    with open(tmp_path / "foreign.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 9),
            model_writer=file,
            vocab_size=280,
            byte_fallback=True,
            model_type="bpe",
            minloglevel=2,
        )
    tokenizer = tokenizers.load(tmp_path / "foreign.model")
    texts = ["the cat", "", "sat", "中"]
    write(tmp_path, tokenizer, texts)
    (chunk,) = tokens.chunks(Store(tmp_path / "tokens"))
    assert chunk.num_bytes(tokenizer) == sum(len(text.encode()) for text in texts)
    assert [tokenizer.decode(ids) for ids in chunk.documents()] == texts


def test_text_and_tokens_together(config, corpus, folder, tmp_path):
    prepared = prepare(config(source=(str(corpus.lined), str(folder))), tmp_path / "out", progress=False)
    assert [source.train.num_documents + source.heldout.num_documents for source in prepared.sources] == [30, 60]
    assert set(map(tuple, documents(prepared.sources[0].train.prefix))) < set(map(tuple, documents(folder / "tokens")))


def test_another_tokenizer_is_refused(config, corpus, folder, tmp_path):
    other = prepare(corpus.config(vocab_size=310), tmp_path / "other", progress=False).tokenizer
    cure = rf"Try: --config.data.tokenizer={folder}/tokenizer"
    with pytest.raises(ConfigError, match=rf"of another tokenizer .*{cure}"):
        prepare(config(tokenizer=str(other)), tmp_path / "out", progress=False)
    with pytest.raises(ConfigError, match=rf"still to be trained .*{cure}"):
        prepare(config(tokenizer="bpe"), tmp_path / "out", progress=False)
    (folder / "tokens.json").unlink()
    with pytest.raises(MissingInput, match="cannot be read: .*tokens.json"):
        prepare(config(), tmp_path / "out", progress=False)


def test_tokens_that_have_changed_are_another_source(config, folder, tmp_path, corpus):
    prepare(config(), tmp_path / "out", progress=False)
    prepare(config(), tmp_path / "out", progress=False)
    write(folder, tokenizers.load(folder / "tokenizer"), ["a", "b"])
    with pytest.raises(ConfigError, match="data.source is .* there, .* now"):
        prepare(config(), tmp_path / "out", progress=False)


def test_ids_outside_the_vocabulary_though_the_sidecar_says_otherwise(config, folder, tmp_path):
    content = np.fromfile(folder / "tokens.bin", np.uint16)
    content[100] = 320
    content.tofile(folder / "tokens.bin")
    with pytest.raises(DataError, match="to 320, the vocabulary has 320"):
        prepare(config(), tmp_path / "out", progress=False)


def test_folders_that_are_not_whole(config, folder, tmp_path):
    tokenizer = tokenizers.load(folder / "tokenizer")
    write(folder, tokenizer, ["one document"])
    with pytest.raises(DataError, match="a single document"):
        prepare(config(), tmp_path / "out", progress=False)
    (folder / "tokens.idx").rename(folder / "part-00000.tokens.tmp")
    with pytest.raises(DataError, match="has not ended .*Try: that stage's command again"):
        prepare(config(), tmp_path / "out", progress=False)
    (folder / "part-00000.tokens.tmp").rename(folder / "tokens.idx")
    (folder / "tokens.bin").unlink()
    with pytest.raises(MissingInput, match="tokens.bin"):
        prepare(config(), tmp_path / "out", progress=False)
