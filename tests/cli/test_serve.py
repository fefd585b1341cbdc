"""What `mtnlg serve` refuses before a model is loaded, and what it hands to the server."""

import sys
import types

import pytest

from mtnlg.cli.main import main
from mtnlg.serve import run
from mtnlg.serve.limits import Limits, meanings

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("MTNLG_API_KEY", raising=False)


@pytest.fixture
def served(monkeypatch):
    """A list of what the server was started with."""
    calls = []
    monkeypatch.setattr(run, "serve", lambda *arguments: calls.append(arguments))
    return calls


def refused(capsys, *arguments: str) -> str:
    assert main(["serve", "--model=none", *arguments]) in (2, 66)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mtnlg: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("name", ["rows", "context", *(name for name, _, _ in meanings())])
def test_nothing_is_unlimited(name, capsys, served):
    assert f"{name}=-1 is out of range (--{name}). Try: 1 or more" in refused(capsys, f"--{name}=-1")
    assert not served


@pytest.mark.parametrize("key", ["", "short", "0123456789 abcdef", "0123456789abcdéf"])
def test_weak_keys(key, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MTNLG_API_KEY", key)
    said = refused(capsys)
    assert "a key has less than 16 characters, white space in it, or is not ASCII (MTNLG_API_KEY)" in said
    assert not key or key not in said
    monkeypatch.delenv("MTNLG_API_KEY")
    (tmp_path / "keys").write_text(f"{KEY}\n{key}\n" if key else "\n\n")
    assert str(tmp_path / "keys") in refused(capsys, f"--key_file={tmp_path / 'keys'}")


def test_a_key_file_that_is_not_there(capsys, tmp_path):
    assert "the keys cannot be read: No such file or directory" in refused(capsys, f"--key_file={tmp_path / 'none'}")


def test_what_the_server_gets(served, monkeypatch, tmp_path, capsys):
    """Keys of environment and file, and every limit; the model is loaded by what it calls, with the length of the queue."""
    monkeypatch.setenv("MTNLG_API_KEY", KEY)
    (tmp_path / "keys").write_text(f"{KEY[::-1]}\n\n")
    made = []
    worker = types.SimpleNamespace(
        make_writer=lambda *given, **reading: made.append((given, reading)) or types.SimpleNamespace(notes=["a"])
    )
    monkeypatch.setitem(sys.modules, "mtnlg.serve.worker", worker)
    changed = {name: default + place for place, (name, default, _) in enumerate(meanings(), 1)}
    given = [f"--{name}={value}" for name, value in changed.items()]
    assert (
        main(
            [
                "serve",
                "--model=m",
                f"--key_file={tmp_path / 'keys'}",
                "--host=::",
                "--port=0",
                "--rows=3",
                "--context=99",
                "--int8=cache",
                *given,
            ]
        )
        == 0
    )
    ((make_writer, host, port, keys, limits, say, note),) = served
    assert (host, port, keys, limits) == ("::", 0, (KEY.encode(), KEY[::-1].encode()), Limits(**changed))
    checked = []
    make_writer(lambda: checked.append(True))
    (((model, _, rows, queue, begin), reading),) = made
    begin("loading")
    assert checked == [True]
    note("ending")
    assert (model, rows, queue) == ("m", 3, limits.queue)
    assert reading == {
        "context": 99,
        "rope_scaling": "none",
        "int8": ("cache",),
        "int8_text": None,
        "draft": None,
        "num_drafted": 4,
        "unroll_layers": None,
    }
    say("http://[::]:1")
    out, err = capsys.readouterr()
    assert err == "mtnlg: a\nmtnlg: ending\n"
    assert "http://[::]:1/v1/models" in out and KEY not in out and out.count("\n") == 1
