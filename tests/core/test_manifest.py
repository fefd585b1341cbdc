"""Hash lists: what is missing, extra, changed or cannot be read is told, and nothing else."""

import json
import pathlib

import pytest

from mtnlg.core import manifest


@pytest.fixture
def folder(tmp_path):
    for name in ("a.bin", "inside/b.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / manifest.NAME).write_text(manifest.content(tmp_path))
    return tmp_path


def test_all_that_differs(folder):
    assert manifest.problems(folder) == []
    (folder / "a.bin").write_bytes(b"b.bin")
    (folder / "inside" / "b.bin").unlink()
    (folder / "c.bin").write_bytes(b"")
    assert manifest.problems(folder) == ["inside/b.bin is missing", "c.bin does not belong to it", "a.bin has changed"]


def test_the_list_itself(folder):
    """Also where the damage means nothing, and where it would blame another file; lists from before they were sealed are read."""
    path = folder / manifest.NAME
    whole = path.read_text()
    digest = json.loads(whole)["files"]["a.bin"]["sha256"]
    for changed in (whole + "\n", whole.replace('"format": 1', '"format": 3'), whole.replace(digest, digest[::-1])):
        path.write_text(changed)
        assert manifest.problems(folder) == [f"{manifest.NAME} has changed"]
    listed = json.loads(whole)
    del listed["sha256"]
    path.write_text(json.dumps(listed, indent=1))
    assert manifest.problems(folder) == []


def test_files_beside_that_nobody_reads(folder):
    for name in ("README.md", "c.bin"):
        (folder / name).write_bytes(b"")
    assert manifest.problems(folder, lambda name: name.endswith(".bin")) == ["c.bin does not belong to it"]


def test_a_file_that_may_not_be_read(folder, monkeypatch):
    true = pathlib.Path.open

    def denied(path, *arguments, **options):
        if path.name == "a.bin":
            raise PermissionError(13, "Permission denied", str(path))
        return true(path, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "open", denied)
    assert manifest.problems(folder) == ["a.bin cannot be read: Permission denied"]
    assert manifest.changed(folder / "a.bin") == ["a.bin cannot be read: Permission denied"]


@pytest.mark.parametrize("said", [{}, {"a.bin": {}}, {"a.bin": []}, {"a.bin": {"bytes": "x", "sha256": ""}}, [], 3])
def test_a_damaged_list(folder, said):
    (folder / manifest.NAME).write_text(json.dumps({"files": said}))
    assert manifest.problems(folder)
    assert manifest.changed(folder / "a.bin") == ([] if said == {} else [f"{manifest.NAME} cannot be read"])
