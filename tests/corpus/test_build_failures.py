import dataclasses
import errno
import struct

import pytest

from mtnlg.core import files
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput, TemporaryFailure
from mtnlg.corpus import manifest
from mtnlg.corpus.build import prepare
from mtnlg.data import store


class SmallDisk:
    """A file on a disk that is full after 500 bytes."""

    def __init__(self, file):
        self._file, self._room = file, 500

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, content):
        self._room -= len(content)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(content)


def fill_disk(patch, place):
    """From now on writing `place`, the tokens or a file of this name, finds the disk full."""
    if place == "tokens":
        patch.setattr(store, "open", lambda *args: SmallDisk(open(*args)), raising=False)  # noqa: SIM115
        return
    write_synced = files.write_synced

    def write(path, content):
        if path.name.startswith(place):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_synced(path, content)

    patch.setattr(files, "write_synced", write)


def move_first_border(path):
    """Moves the end of the first document by one token in an `.idx`, which stays sound: its length, the next one's, its offset."""
    content = bytearray(path.read_bytes())
    num_sequences = struct.unpack_from("<Q", content, 18)[0]
    for place, kind, change in ((34, "<i", -1), (38, "<i", 1), (34 + 4 * num_sequences + 8, "<q", -2)):
        struct.pack_into(kind, content, place, struct.unpack_from(kind, content, place)[0] + change)
    path.write_bytes(content)


@pytest.mark.parametrize("place", ["tokens", "folded.train.idx", "tokenizer", "manifest"])
def test_a_full_disk_is_temporary_and_harms_nothing(tmp_path, corpus, tokenizer_path, monkeypatch, place, contents):
    config = corpus.config(tokenizer=tokenizer_path)
    earlier = prepare(config, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, heldout_fraction=0.5))
    with monkeypatch.context() as patch:
        fill_disk(patch, place)
        with pytest.raises(TemporaryFailure, match="no room to write.*Try: free some space"):
            prepare(config, tmp_path / "new", progress=False)
        with pytest.raises(ConfigError):
            prepare(other, tmp_path / "out", progress=False)
        assert prepare(config, tmp_path / "out", progress=False) == earlier
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "new" / manifest.FILE).exists() and not list((tmp_path / "new").rglob("*.tmp"))
    prepare(config, tmp_path / "new", progress=False)
    assert (tmp_path / "new" / "folded.train.bin").read_bytes() == (tmp_path / "out" / "folded.train.bin").read_bytes()


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path, corpus, tokenizer_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CannotWrite, match=f"cannot write.*{tmp_path}"):
        prepare(corpus.config(tokenizer=tokenizer_path), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    "damage", [lambda c: "", lambda c: "[]", lambda c: '{"fingerprint": 3}', lambda c: c.replace('"train"', '"trains"')]
)
def test_a_damaged_manifest_is_told(tmp_path, corpus, tokenizer_path, damage):
    config = corpus.config(tokenizer=tokenizer_path)
    prepare(config, tmp_path / "out", progress=False)
    path = tmp_path / "out" / manifest.FILE
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match="manifest is damaged.*manifest.json.*Try: delete"):
        prepare(config, tmp_path / "out", progress=False)


def test_stores_of_another_directory_are_told(tmp_path, corpus, tokenizer_path):
    config = corpus.config(tokenizer=tokenizer_path)
    prepare(config, tmp_path / "out", progress=False)
    for suffix in ("bin", "idx", "json"):
        (tmp_path / "out" / f"folded.train.{suffix}").write_bytes((tmp_path / "out" / f"lined.train.{suffix}").read_bytes())
    with pytest.raises(DataError, match="not those of the manifest.*folded.train.*Try: delete"):
        prepare(config, tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", ["lined.train.bin", "folded.heldout.bin", "folded.train.idx", "lined.heldout.json"])
def test_a_changed_file_is_told(tmp_path, corpus, tokenizer_path, name):
    """Also where the store itself looks sound: one id for another, a document's end at another place, another count."""
    config = corpus.config(tokenizer=tokenizer_path)
    prepare(config, tmp_path / "out", progress=False)
    path = tmp_path / "out" / name
    if path.suffix == ".json":
        path.write_text(path.read_text().replace('"num_bytes": ', '"num_bytes": 1'))
    elif path.suffix == ".idx":
        move_first_border(path)
        store.Store(path.with_suffix(""))
    else:
        content = path.read_bytes()
        path.write_bytes(content[2:4] + content[:2] + content[4:])
    with pytest.raises(DataError, match=f"not those of the manifest.*{name}.*Try: delete"):
        prepare(config, tmp_path / "out", progress=False)


def test_a_tokenizer_put_in_afterwards_is_told(tmp_path, corpus):
    config = corpus.config()
    prepared = prepare(config, tmp_path / "out", progress=False)
    other = prepare(corpus.config(vocab_size=330), tmp_path / "other", progress=False)
    prepared.tokenizer.write_bytes(other.tokenizer.read_bytes())
    with pytest.raises(DataError, match="not of the tokenizer beside them.*lined.train"):
        prepare(config, tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", ["lined.heldout.bin", "folded.train.idx", "tokenizer/tokenizer.model"])
def test_a_lost_file_is_told(tmp_path, corpus, name):
    prepare(corpus.config(), tmp_path / "out", progress=False)
    (tmp_path / "out" / name).unlink()
    with pytest.raises(MissingInput, match=name):
        prepare(corpus.config(), tmp_path / "out", progress=False)
