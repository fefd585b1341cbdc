"""A store of tokens holds what the tokenizers' own libraries make of the texts, whoever made it, however often it was killed."""

import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
from corpora import run
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.store import Store

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "12", "seven", "lazy", "dogs,", "don't", "it's", "we'll", "naïve", "中文的字"]
WORDS += ["\t", "tabs\n\n", "", "", "", "indented", "<|endoftext|>", "</s>", "▁"]
DOCUMENTS = [
    {"id": str(n), "text": " ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(n % 60)), "source": "ab"[n % 2]} for n in range(400)
]
KINDS = {"bpe": 330, "unigram": 310, "byte-level": 345}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{kind: the folder of a train-tokenizer stage}."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "texts.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for kind, size in KINDS.items():
        run("train-tokenizer", str(folder / "texts.jsonl"), folder / kind, kind=kind, vocab_size=size)
    return {kind: folder / kind for kind in KINDS}


def tokenize(inputs, output, tokenizer, **options):
    return run("tokenize", inputs, output, tokenizer=str(tokenizer), **{"part_bytes": 5000, **options})


def read_megatron(prefix) -> list[list[int]]:
    """The documents of an indexed dataset, from the description of the format alone (indexed_dataset.py of Megatron)."""
    index, tokens = (pathlib.Path(f"{prefix}{suffix}").read_bytes() for suffix in (".idx", ".bin"))
    magic, version, code, num_sequences, num_boundaries = struct.unpack_from("<9sQBQQ", index)
    assert (magic, version) == (b"MMIDIDX\x00\x00", 1) and num_boundaries == num_sequences + 1
    lengths = struct.unpack_from(f"<{num_sequences}i", index, 34)
    offsets = struct.unpack_from(f"<{num_sequences}q", index, 34 + 4 * num_sequences)
    assert struct.unpack_from(f"<{num_boundaries}q", index, 34 + 12 * num_sequences) == tuple(range(num_boundaries))
    assert len(index) == 34 + 12 * num_sequences + 8 * num_boundaries
    letter = {8: "H", 4: "i"}[code]
    return [list(struct.unpack_from(f"<{n}{letter}", tokens, offset)) for n, offset in zip(lengths, offsets, strict=True)]


def plainly(folder):
    """(function from a text to its ids, id of the end) by the tokenizer's library alone."""
    if (folder / "tokenizer.model").exists():
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        byte_ids = [model.piece_to_id(f"<0x{byte:02X}>") for byte in "▁".encode()]  # it would take the sign for a space

        def encode(text):
            first, *others = [model.encode(part) for part in text.split("▁")]
            return first + [id for other in others for id in byte_ids + other]

        return encode, model.eos_id()
    from tokenizers import ByteLevelBPETokenizer

    model = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    return lambda text: model.encode(text).ids, vocabulary["<|endoftext|>"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_store_is_what_the_library_gives(corpus, tmp_path, trained, kind):
    tally = tokenize(corpus(DOCUMENTS), tmp_path / "out", trained[kind])
    encode, end = plainly(trained[kind])
    expected = [[*encode(document["text"]), end] for document in DOCUMENTS]
    assert read_megatron(tmp_path / "out" / "tokens") == expected
    sidecar = json.loads((tmp_path / "out" / "tokens.json").read_text())
    assert (sidecar["eod_id"], sidecar["num_documents"], sidecar["vocab_size"]) == (end, 400, KINDS[kind])
    assert sidecar["num_bytes"] == sum(len(document["text"].encode()) for document in DOCUMENTS)
    by_source = {s: sum(len(ids) for ids, d in zip(expected, DOCUMENTS, strict=True) if d["source"] == s) for s in "ab"}
    assert tally.counts["tokens written"] == by_source and tally.counts["documents written"] == {"a": 200, "b": 200}
    lengths = tally.counts["tokens per document"]
    assert lengths.total() == 400 and lengths["        1"] == sum(len(ids) == 1 for ids in expected)
    assert tokenizers.load(tmp_path / "out" / "tokenizer").sha256 == sidecar["tokenizer_sha256"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("lock", "stage.json", "tokenizer", "tokens.bin", "tokens.idx", "tokens.json")
    ]


TEXTS = st.text() | st.text(alphabet="a' \n\t\u00a0dstre1²中é▁<|>!?\U0001f642") | st.lists(st.sampled_from(WORDS)).map(" ".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
@example(text="<|endoftext|>")
@example(text=" " * 3_000 + "x")
def test_fast_ids_are_those_of_the_library(trained, kind, text):
    tokenizer = tokenizers.load(trained[kind])
    (ids,) = tokenizer.encode_arrays([text])
    assert ids.tolist() == plainly(trained[kind])[0](text) == tokenizer.encode(text)


def test_white_space_beyond_the_pattern(trained):
    tokenizer = tokenizers.load(trained["byte-level"])
    text = " \t" * 500_000 + "x"
    assert tokenizer.encode_arrays([text])[0].tolist() == tokenizer.encode(text)


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")
@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_gpt2_ids_are_those_of_the_library(text):
    tokenizer = _gpt2()
    assert tokenizer._engine is not None
    assert tokenizer.encode_arrays([text])[0].tolist() == tokenizer.encode(text)


def _gpt2(loaded=[]):  # noqa: B006 (once for all examples)
    if not loaded:
        loaded.append(tokenizers.load(DATA / "tokenizers" / "gpt2"))
    return loaded[0]


def test_merges_in_another_order_are_not_left_to_tiktoken(tmp_path, trained):
    """Negative control: it merges by ids, and these ids do not rise with the merges."""
    folder = trained["byte-level"]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merged = sorted(vocabulary, key=vocabulary.get)[256:-1]
    vocabulary |= {token: 256 + place for place, token in enumerate(reversed(merged))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
    tokenizer = tokenizers.load(tmp_path)
    assert tokenizer._engine is None and tokenizers.load(folder)._engine is not None
    for document in DOCUMENTS[:60]:
        assert tokenizer.encode_arrays([document["text"]])[0].tolist() == plainly(tmp_path)[0](document["text"])


def content(folder) -> dict[str, bytes]:
    found = {path.relative_to(folder): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name.name not in ("lock", "stage.json")}


@pytest.mark.parametrize("kind", ["bpe", "byte-level"])
def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path, trained, kind):
    tallies = [tokenize(corpus(DOCUMENTS), tmp_path / str(n), trained[kind], num_workers=n).as_json() for n in (1, 2, 4)]
    assert tallies[0] == tallies[1] == tallies[2]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    assert tokenize(corpus(DOCUMENTS), tmp_path / "one part", trained[kind], part_bytes=10**9).as_json() == tallies[0]
    assert content(tmp_path / "one part") == content(tmp_path / "1")


KILLED = """
import os, sys
from mtnlg.factory import folder, registry, passes
from mtnlg.factory.passes import Machine

def kill(*arguments):
    os.kill(os.getpid(), 9)

add, end = folder.Journal.add, folder.Journal.end
def add_or_die(journal, part):
    if len(journal.parts) == 3:
        kill()
    add(journal, part)

def end_and_die(*arguments):
    end(*arguments)
    kill()

if sys.argv[1] == "third part":
    folder.Journal.add = add_or_die
elif sys.argv[1] == "joined":
    folder.Journal.end = kill
else:
    folder.Journal.end = end_and_die
registry.make("tokenize", {"tokenizer": sys.argv[2]}).run((sys.argv[3],), sys.argv[4], Machine(1, 5000, progress=False))
"""


@pytest.mark.parametrize("when", ["third part", "joined", "ended"])
def test_killed_and_run_again_it_ends_in_the_same_bytes(corpus, tmp_path, trained, when):
    """While there are parts; when the store is there and stage.json is not; when both are and the parts are not yet deleted."""
    path, tokenizer = corpus(DOCUMENTS), trained["bpe"]
    whole = tokenize(path, tmp_path / "whole", tokenizer).as_json()
    killed = subprocess.run([sys.executable, "-c", KILLED, when, str(tokenizer), path, str(tmp_path / "killed")])
    assert killed.returncode == -signal.SIGKILL and list((tmp_path / "killed").glob("part-*"))
    assert tokenize(path, tmp_path / "killed", tokenizer).as_json() == whole
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_what_cannot_be_read_or_encoded_is_set_aside(corpus, tmp_path, trained, monkeypatch):
    """One text that a library chokes on does not take its batch with it."""
    original = tokenizers.SentencePieceTokenizer.encode_arrays

    def choking(self, texts):
        if any("choke" in text for text in texts):
            raise RuntimeError("too long")
        return original(self, texts)

    monkeypatch.setattr(tokenizers.SentencePieceTokenizer, "encode_arrays", choking)
    tally = tokenize(
        corpus([*DOCUMENTS[:9], {"text": "choke"}, b"{", b'{"text": "\\ud800"}', *DOCUMENTS[9:]]), tmp_path / "out", trained["bpe"]
    )
    assert [reason.partition(" in ")[0] for reason in tally.counts["unreadable"]] == ["not JSON", "lone surrogates", "failed: RuntimeError"]
    tokenizer = tokenizers.load(trained["bpe"])
    expected = [[*tokenizer.encode(d["text"]), tokenizer.eod_id] for d in DOCUMENTS]
    assert read_megatron(tmp_path / "out" / "tokens") == expected


def test_no_documents(corpus, tmp_path, trained):
    tokenize(corpus([]), tmp_path / "out", trained["bpe"])
    with pytest.raises(DataError, match="holds no tokens"):
        Store(tmp_path / "out" / "tokens")


def test_tokenizers_that_are_none(corpus, tmp_path, trained):
    path = corpus(DOCUMENTS)
    with pytest.raises(ConfigError, match="no tokenizer is named .*--tokenizer=PATH"):
        run("tokenize", path, tmp_path / "out")
    with pytest.raises(MissingInput, match="there is no tokenizer"):
        tokenize(path, tmp_path / "out", tmp_path / "nowhere")
    tokenize(path, tmp_path / "out", trained["bpe"])
    with pytest.raises(ConfigError, match=r"tokenizer .* there, .* now"):
        tokenize(path, tmp_path / "out", trained["unigram"])
    shutil.copytree(trained["bpe"], tmp_path / "elsewhere" / "bpe")
    tokenize(path, tmp_path / "out", tmp_path / "elsewhere" / "bpe")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "journal.jsonl").write_text("")
    with pytest.raises(DataError, match="has not ended"):
        tokenize(path, tmp_path / "other", tmp_path / "unfinished")


TRAIN_AGAIN = """
import sys
from mtnlg.factory import registry
from mtnlg.factory.passes import Machine
kind, size, path, output, workers = sys.argv[1:]
options = {"kind": kind, "vocab_size": size, "train_bytes": 20_000}
if __name__ == "__main__":
    registry.make("train-tokenizer", options).run((path,), output, Machine(int(workers), 5000, progress=False))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_is_the_same_in_another_process_and_with_more_workers(corpus, tmp_path, kind):
    path = corpus(DOCUMENTS)
    for workers in "12":
        command = [sys.executable, "-c", TRAIN_AGAIN, kind, str(KINDS[kind]), path, str(tmp_path / workers), workers]
        subprocess.run(command, check=True)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    tokenizer = tokenizers.load(tmp_path / "1")
    assert tokenizer.vocab_size == KINDS[kind]
    assert all(tokenizer.decode(tokenizer.encode(document["text"])) == document["text"] for document in DOCUMENTS)


def test_the_sample_is_bounded_and_of_every_part(corpus, tmp_path, monkeypatch):
    from mtnlg.data import byte_level

    seen = []
    monkeypatch.setattr(byte_level, "train", lambda texts, *rest: (seen.extend(texts), (b"{}", b""))[1])
    path = corpus([{"text": f"{n:05d}" + "." * 995} for n in range(2000)])
    tally = run("train-tokenizer", path, tmp_path / "out", kind="byte-level", vocab_size=300, train_bytes=100_000)
    numbers = np.array([int(text[:5]) for text in seen])
    assert 90_000 <= sum(map(len, seen)) <= 101_000 and 150_000 < tally.counts["bytes sampled"]["corpus"] < 250_000
    assert (np.diff(numbers) > 0).all() and all(abs(np.mean(numbers < bound) - bound / 2000) < 0.15 for bound in (500, 1000, 1500))


def test_a_vocabulary_that_does_not_fit_names_one_that_does(corpus, tmp_path):
    path = corpus([{"text": "the cat sat on the mat. " * 9}])
    for kind in KINDS:
        with pytest.raises(DataError, match=r"too few pieces .*Try: --vocab_size=\d+") as error:
            run("train-tokenizer", path, tmp_path / kind, kind=kind, vocab_size=5000)
        size = int(str(error.value).rpartition("--vocab_size=")[2].partition(",")[0])
        run("train-tokenizer", path, tmp_path / f"{kind} again", kind=kind, vocab_size=size)
    with pytest.raises(ConfigError, match="no room for the bytes"):
        run("train-tokenizer", path, tmp_path / "out", kind="byte-level", vocab_size=256)
