"""Writing is all or nothing, on a disk that is really full."""

import errno
import os
import resource
import subprocess
import sys

import pytest

from mtnlg.core.errors import CannotWrite, TemporaryFailure
from mtnlg.core.files import AppendFile, making_folder, write_atomic, writing


def in_small_space(limit_bytes: int, code: str, *arguments) -> str:
    """Runs code in a process whose files cannot grow beyond a limit: writes are cut short, as on a full disk."""
    limit = (limit_bytes, limit_bytes)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    return done.stdout + done.stderr


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, b"\x00old")
    write_atomic(path, "new £")
    assert path.read_text(encoding="utf-8") == "new £"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_on_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    code = "import sys; from mtnlg.core.files import write_atomic; write_atomic(sys.argv[1], 'x' * 5000)"
    assert "TemporaryFailure: no room to write" in in_small_space(1000, code, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_where_no_file_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="Not a directory"):
        write_atomic(tmp_path / "file" / "a.json", "x")


def test_a_record_that_does_not_fit_is_taken_back(tmp_path):
    path = tmp_path / "log"
    code = "import sys; from mtnlg.core.files import AppendFile; f = AppendFile(sys.argv[1])\nfor i in range(20): f.append(b'%099d\\n' % i)"
    assert "TemporaryFailure: no room to write" in in_small_space(1050, code, path)
    assert path.read_bytes() == b"".join(b"%099d\n" % i for i in range(10))  # 1000 bytes; the eleventh record began to be written


def test_appending_goes_on_where_the_file_ends(tmp_path):
    for record in (b"one\n", b"two\n"):
        file = AppendFile(tmp_path / "log")
        file.append(record)
        file.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_appending_where_no_file_can_be(tmp_path):
    with pytest.raises(CannotWrite):
        AppendFile(tmp_path)


@pytest.mark.parametrize("number, kind", [(errno.ENOSPC, TemporaryFailure), (errno.EDQUOT, TemporaryFailure), (errno.EACCES, CannotWrite)])
def test_which_error_is_the_disk_and_which_the_permission(number, kind):
    with pytest.raises(kind, match=r"why.* \(a/b\)\. Try: "), writing("a/b"):
        raise OSError(number, "why")


def test_a_full_disk_names_the_bytes_where_they_are_known(tmp_path):
    with pytest.raises(TemporaryFailure, match=r"77 bytes at least are needed, \d+ are free; what"), writing(tmp_path / "a/b/c", 77):
        raise OSError(errno.ENOSPC, "why")
    with pytest.raises(TemporaryFailure, match="why; what was there"), writing(tmp_path):
        raise OSError(errno.ENOSPC, "why")


def test_the_disk_has_the_file_and_its_name(tmp_path, monkeypatch):
    """In this order: the content, the new name, the folder that holds the name."""
    told = []

    def recorded(name, original):
        def call(first, *rest):
            told.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else first)))
            return original(first, *rest)

        monkeypatch.setattr(os, name, call)

    recorded("fsync", os.fsync)
    recorded("replace", os.replace)
    write_atomic(tmp_path / "a.json", "x")
    assert told == [("fsync", "a.json.tmp"), ("replace", "a.json.tmp"), ("fsync", tmp_path.name)]


def test_a_folder_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "made"
    with pytest.raises(ValueError, match="half way"), making_folder(path) as draft:
        (draft / "one").write_text("1")
        raise ValueError("half way")
    assert not path.exists()
    with making_folder(path) as draft:
        assert list(draft.iterdir()) == []
        (draft / "two").write_text("2")
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["two"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite), making_folder(tmp_path / "file" / "made"):
        pass
