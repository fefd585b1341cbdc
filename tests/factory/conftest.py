"""What the tests of stages read."""

import json

import pytest


@pytest.fixture
def corpus(tmp_path):
    """A function: writes documents (dicts, or bytes as they are) as lines of a JSONL file and returns its path."""

    def write(documents, name="corpus.jsonl") -> str:
        lines = [d if isinstance(d, bytes) else json.dumps(d).encode() for d in documents]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines) + b"\n")
        return str(path)

    return write
