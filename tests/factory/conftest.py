"""What the tests of stages read."""

import json
import sys

import fakes
import pytest

from mtnlg.factory import registry


@pytest.fixture
def corpus(tmp_path):
    """A function: writes documents (dicts, or bytes as they are) as lines of a JSONL file and returns its path."""

    def write(documents, name="corpus.jsonl") -> str:
        lines = [d if isinstance(d, bytes) else json.dumps(d).encode() for d in documents]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines) + b"\n")
        return str(path)

    return write


@pytest.fixture
def fake_stages(monkeypatch):
    """The stages `keep` and `words` of fakes.py, for as long as the test."""
    monkeypatch.setattr(registry, "STAGES", dict(registry.STAGES))
    monkeypatch.setitem(sys.modules, "mtnlg.factory.fakes", fakes)
    fakes.register()
