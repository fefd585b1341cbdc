"""`mtnlg generate`: the prompt, and after it the text piece by piece."""

import io
import os

import pytest

from mtnlg import lm
from mtnlg.cli.main import main
from mtnlg.infer.engine import Request


class Echo:
    """A model that says its prompt again, word by word."""

    path = asked = None
    seq_len = 80

    def prompt_ids(self, text):
        return text.split()

    def stream(self, prompt, stop, **sampling):
        self.asked = (prompt, stop, sampling)
        yield from (f" {word}" for word in prompt.split())


@pytest.fixture
def echo(monkeypatch):
    model = Echo()

    def from_pretrained(path, mesh):
        model.path, model.mesh = path, mesh
        return model

    monkeypatch.setattr(lm, "from_pretrained", from_pretrained)
    return model


def test_prompt_and_text(echo, capsys):
    options = ["--max_new_tokens=9", "--temperature=0", "--top_k=3", "--top_p=0.5", "--seed=7", "--stop=a", "--stop", "b"]
    assert main(["generate", "--workdir=runs/x", "--prompt=the 中文", *options]) == 0
    assert capsys.readouterr().out == "the 中文 the 中文\n"
    sampling = {"max_new_tokens": 9, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "seed": 7}
    assert (echo.path, echo.asked) == ("runs/x", ("the 中文", ["a", "b"], sampling))


def test_defaults_are_those_of_a_request(echo):
    assert main(["generate", "--model=runs/x/checkpoints/3", "--prompt=a"]) == 0
    assert echo.asked[2] == {name: value for name, value in Request([])._asdict().items() if name != "prompt"}
    assert echo.path == "runs/x/checkpoints/3"


def test_prompt_from_standard_input(echo, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("def é".encode())))
    assert main(["generate", "--model=x", "--prompt=-"]) == 0
    assert capsys.readouterr().out == "def é def é\n"


def test_a_reader_that_goes_away_is_no_error(echo, monkeypatch):
    """As in `mtnlg generate ... | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["generate", "--model=x", "--prompt=a b"]) == 0


def test_more_than_the_model_has_learnt_from(echo, capsys):
    assert main(["generate", "--workdir=runs/x", "--prompt=one two", "--max_new_tokens=78"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["generate", "--workdir=runs/x", "--prompt=one two", "--max_new_tokens=79"]) == 0
    assert "81 tokens are asked for, and the model has learnt from 80" in capsys.readouterr().err
