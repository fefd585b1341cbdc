"""Stores of tokens merged, split, looked at, and refused when they are damaged."""

import itertools
import json
import pathlib
import random
import shutil

import numpy as np
import pytest
from corpora import run
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.cli.main import main
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.data.store import Store
from mtnlg.factory.tokens import merge, verify

TEXTS = [f"document {n} " + "says \x1b[31m this\nand that " * (n % 40) for n in range(100)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of tokens: `a` and `b` of one tokenizer, `other` of another."""
    root = tmp_path_factory.mktemp("stores")
    for name, texts in (("a", TEXTS), ("b", TEXTS[::-1]), ("other", TEXTS)):
        path = root / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        if name != "b":
            run("train-tokenizer", str(path), root / f"tokenizer-{name}", kind="byte-level", vocab_size=280 if name == "a" else 270)
        tokenizer = root / ("tokenizer-other" if name == "other" else "tokenizer-a")
        run("tokenize", str(path), root / name, tokenizer=str(tokenizer))
    return root


def documents(folder) -> list[tuple[int, ...]]:
    store = Store(pathlib.Path(folder) / "tokens")
    return [tuple(store.read(a, b - a).tolist()) for a, b in itertools.pairwise(store.document_starts)]


def test_merged_stores_are_one_behind_the_other(folders, tmp_path):
    tally = run("merge", (folders / "a", folders / "b"), tmp_path / "out")
    assert documents(tmp_path / "out") == documents(folders / "a") + documents(folders / "b")
    assert tally.counts["documents read"] == {"a": 100, "b": 100}
    sidecars = [json.loads((folder / "tokens.json").read_text()) for folder in (folders / "a", folders / "b", tmp_path / "out")]
    assert sidecars[0]["num_bytes"] + sidecars[1]["num_bytes"] == sidecars[2]["num_bytes"] == 2 * sum(len(text.encode()) for text in TEXTS)
    assert verify.faults(str(tmp_path / "out")) == []
    assert run("merge", (folders / "a", folders / "b"), tmp_path / "out").as_json() == tally.as_json()
    with pytest.raises(ConfigError, match="made of other inputs"):
        run("merge", (folders / "b", folders / "a"), tmp_path / "out")
    with pytest.raises(ConfigError, match="other has another tokenizer than .*a .*--input"):
        run("merge", (folders / "a", folders / "other"), tmp_path / "refused")


def test_a_split_puts_every_document_into_one_part(folders, tmp_path, monkeypatch):
    tally = run("split", str(folders / "a"), tmp_path / "out", weights=(90, 7, 3))
    assert tally.counts["documents of a part"] == {"train": 90, "valid": 7, "test": 3}
    parts = [documents(tmp_path / "out" / name) for name in merge.SIDES]
    assert [len(part) for part in parts] == [90, 7, 3]
    assert sorted(itertools.chain(*parts)) == sorted(documents(folders / "a"))
    assert all(verify.faults(str(tmp_path / "out" / name)) == [] for name in merge.SIDES)
    order = {ids: place for place, ids in enumerate(documents(folders / "a"))}
    places = [[order[ids] for ids in part] for part in parts]
    assert all(part == sorted(part) for part in places) and places[1] != list(range(90, 97))
    monkeypatch.setattr(merge.tokens, "_CHUNK_TOKENS", 100)
    run("split", str(folders / "a"), tmp_path / "again", weights=(90, 7, 3))
    for name in merge.SIDES:
        for file in ("tokens.bin", "tokens.idx", "tokens.json"):
            assert (tmp_path / "out" / name / file).read_bytes() == (tmp_path / "again" / name / file).read_bytes()


@given(st.integers(1, 2000), st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=3))
@settings(max_examples=60, deadline=None)
def test_shares_are_exact_to_a_document(num_documents, weights):
    ideal = np.array(weights) / sum(weights) * num_documents
    try:
        counts = np.bincount(merge.sides(num_documents, tuple(weights)), minlength=len(weights))
    except DataError:
        assert ideal.min() < 1
        return
    assert counts.sum() == num_documents and counts.min() > 0 and (np.abs(counts - ideal) < 1).all()


def test_splits_that_are_none(folders, tmp_path):
    for weights in ((1,), (1, 0), (1, 2, 3, 4), (1, float("nan"))):
        with pytest.raises(ConfigError, match="--weights=969,30,1"):
            run("split", str(folders / "a"), tmp_path / "out", weights=weights)
    with pytest.raises(DataError, match="100 documents are too few"):
        run("split", str(folders / "a"), tmp_path / "out", weights=(1000, 1))
    with pytest.raises(ConfigError, match="2 inputs"):
        run("split", (folders / "a", folders / "b"), tmp_path / "out")
    with pytest.raises(MissingInput, match="there are no tokens in"):
        run("merge", str(tmp_path), tmp_path / "out")


def cut(content, chance):
    return content[: chance.randrange(len(content))]


def flip(content, chance):
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def flip_header(content, chance):
    return flip(content[:34], chance) + content[34:]


def lie(content, chance):
    """Another number where the index has a size or an offset, or the sidecar and .bin anything."""
    place = chance.randrange(9, len(content) - 8)
    return content[:place] + chance.randbytes(8) + content[place + 8 :]


def lengthen(content, chance):
    return content + chance.randbytes(chance.randrange(1, 40))


def empty(content, chance):
    return b""


DAMAGES = (cut, flip, flip_header, lie, lengthen, empty)
FILES = ("tokens.bin", "tokens.idx", "tokens.json", "tokenizer/tokenizer.json")
UNTOLD = ("tokens.bin", "tokens.idx", "tokenizer/tokenizer.json")


@pytest.mark.parametrize("with_stage", [True, False])
def test_damaged_stores_are_refused(folders, tmp_path, with_stage):
    """Of all files where the stage says what it wrote; without it, those whose damage can be seen: not what a sidecar says of its text."""
    chance, missed = random.Random(with_stage), []
    for number in range(200):
        folder = tmp_path / str(number)
        shutil.copytree(folders / "a", folder)
        if not with_stage:
            (folder / "stage.json").unlink()
        name = chance.choice(FILES if with_stage else UNTOLD)
        damage = chance.choice(DAMAGES)
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(before, chance))
        if (folder / name).read_bytes() != before and not verify.faults(str(folder)):
            missed.append((name, damage.__name__))
        shutil.rmtree(folder)
    assert missed == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("with_stage", [True, False])
def test_files_that_are_gone_or_of_another_store_are_refused(folders, tmp_path, name, with_stage):
    for number, other in enumerate((None, "b", "other")):
        folder = tmp_path / str(number)
        shutil.copytree(folders / "a", folder)
        if not with_stage:
            (folder / "stage.json").unlink()
        if other is None:
            (folder / name).unlink()
        else:
            shutil.copy(folders / other / name, folder / name)
        if other != "b" or not name.startswith("tokenizer/"):
            assert verify.faults(str(folder)) != []


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_as_an_index_or_a_sidecar(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("any")
    (folder / "tokens.bin").write_bytes(b"\1\0" * 20)
    for head in (b"", b"MMIDIDX\0\0\1\0\0\0\0\0\0\0\10"):
        (folder / "tokens.idx").write_bytes(head + content)
        assert len(verify.faults(str(folder))) == 1


def test_what_megatron_wrote_has_no_sidecar(folders, tmp_path):
    for suffix in ("bin", "idx"):
        shutil.copy(folders / "a" / f"tokens.{suffix}", tmp_path / f"theirs.{suffix}")
    assert verify.faults(str(tmp_path / "theirs.idx")) == [] == verify.faults(str(tmp_path / "theirs"))
    assert verify.faults(str(tmp_path / "theirs.idx"), str(folders / "tokenizer-a")) == []
    ids, ends = verify.faults(str(tmp_path / "theirs.idx"), str(folders / "tokenizer-other"))
    assert "the vocabulary has 270" in ids and "100 documents do not end with 269, the first of them is 0" in ends


def test_verify_as_it_is_typed(folders, tmp_path, capsys):
    assert main(["data", "verify", str(folders / "a")]) == 0
    assert capsys.readouterr().out == f"{folders / 'a'}: whole\n"
    shutil.copytree(folders / "a", tmp_path / "a")
    with (tmp_path / "a" / "tokens.bin").open("r+b") as file:
        file.truncate(100)
    assert main(["data", "verify", str(tmp_path / "a")]) == 65
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith(str(tmp_path / "a")) and "tokens.bin" in line for line in lines)
    assert main(["data", "verify", str(tmp_path)]) == 66


def test_show_as_it_is_typed(folders, tmp_path, capsys):
    assert main(["data", "show", str(folders / "a")]) == 0
    said = capsys.readouterr().out
    assert "100 documents" in said and "uint16" in said and "280 tokens, a document ends with 279" in said
    assert main(["data", "show", str(folders / "a" / "tokens.idx"), "--doc=-1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("document 99 of 100: ") and "\x1b" not in said and "says \ufffd[31m this\n" in said
    assert len(said.splitlines()) < 30 and "--all shows them" in said
    assert main(["data", "show", str(folders / "a"), "--doc=99", "--all"]) == 0
    said = capsys.readouterr().out
    ids = [int(word) for line in said.splitlines()[1:] if set(line) <= set("0123456789 ") for word in line.split()]
    assert tuple(ids) == documents(folders / "a")[99] and said.count("says") == 19
    assert main(["data", "show", str(folders / "a"), "--doc=100"]) == 2
    shutil.copy(folders / "a" / "tokens.bin", tmp_path / "x.bin")
    shutil.copy(folders / "a" / "tokens.idx", tmp_path / "x.idx")
    assert main(["data", "show", str(tmp_path / "x.idx"), "--doc=0"]) == 0
    assert main(["data", "show", str(tmp_path / "x"), "--doc=0", f"--tokenizer={folders / 'tokenizer-other'}"]) == 65
    assert main(["data", "show", str(tmp_path / "nothing")]) == 66
