"""`mtnlg chat`: a conversation through a pipe and on a terminal, its history, and what ends it."""

import io
import os
import signal
import sys
import types

import pytest

from mtnlg import lm
from mtnlg.cli.main import main
from mtnlg.core.errors import ConfigError
from mtnlg.infer.request import Request, Token
from mtnlg.text_engine import Written
from tests.data.test_chat import CHATML, with_template


class Parrot:
    """A model that says how often it was asked, and with what."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, []
        self.engine, self.notes = types.SimpleNamespace(context=1000), ()

    def request_of(self, ask):
        return Request(ask.prompt, **ask.sampling), None

    def write(self, request, stop):
        self.asked.append((self.tokenizer.decode(request.prompt), request))
        yield from written("answer ", str(len(self.asked)))


def written(*pieces, finish="stop"):
    """As `lm.write` tells it."""
    finishes = [None] * (len(pieces) - 1) + [finish]
    yield from (Written(1, piece, Token(1), ended, 0) for piece, ended in zip(pieces, finishes, strict=True))


@pytest.fixture
def parrot(monkeypatch, tmp_path):
    model = Parrot(with_template(tmp_path, CHATML))
    monkeypatch.setattr(lm, "from_pretrained", lambda path, mesh, **settings: model)
    return model


def piped(monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_every_line_is_answered_with_all_that_was_said(parrot, monkeypatch, capsys):
    piped(monkeypatch, "one\n\n  é two \nthree".encode())
    assert main(["chat", "--model=x", "--system=be brief", "--temperature=0", "--max_new_tokens=9"]) == 0
    assert capsys.readouterr().out == "answer 1\n---\nanswer 2\n---\nanswer 3\n"
    first = "system\nbe brief\nuser\none\nassistant\n"
    assert [text for text, _ in parrot.asked[:2]] == [first, f"{first}answer 1\nuser\né two\nassistant\n"]
    asked = parrot.asked[0][1]
    assert asked == Request(asked.prompt, max_new_tokens=9, temperature=0.0)


def test_reset(parrot, monkeypatch, capsys):
    piped(monkeypatch, b"one\n/reset\ntwo\n")
    assert main(["chat", "--model=x"]) == 0
    assert [text for text, _ in parrot.asked] == ["user\none\nassistant\n", "user\ntwo\nassistant\n"]
    assert capsys.readouterr() == ("answer 1\n---\nanswer 2\n", "mtnlg: the conversation starts afresh\n")


def test_a_command_that_there_is_not_is_not_said_to_the_model(parrot, monkeypatch, capsys):
    piped(monkeypatch, b"/foo bar\n")
    assert main(["chat", "--model=x"]) == 2
    said = "mtnlg: error: there is no command /foo (chat). Try: /help, which lists them, or //foo bar to say it\n"
    assert capsys.readouterr() == ("", said) and not parrot.asked
    piped(monkeypatch, b"//foo bar\n// x\n")
    assert main(["chat", "--model=x"]) == 0
    assert [text.split("\n")[-3] for text, _ in parrot.asked] == ["/foo bar", "/ x"]


@pytest.mark.parametrize(
    ("question", "by"), [(b"one", "--max_new_tokens=300"), (b"a" * 900, "the context of 1000 tokens")], ids=["setting", "context"]
)
def test_an_answer_that_is_cut_off_is_told(parrot, monkeypatch, capsys, question, by):
    parrot.write = lambda request, stop: written("well", finish="length")
    piped(monkeypatch, question + b"\n")
    assert main(["chat", "--model=x", "--max_new_tokens=300"]) == 0
    assert capsys.readouterr() == ("well\n", f"mtnlg: the answer is cut off by {by}\n")


def test_the_defaults_of_a_conversation(parrot, monkeypatch):
    piped(monkeypatch, b"one\n")
    assert main(["chat", "--model=x"]) == 0
    assert (parrot.asked[0][1].temperature, parrot.asked[0][1].max_new_tokens) == (0.2, 512)


def test_help(parrot, monkeypatch, capsys):
    piped(monkeypatch, b"/help\none\n")
    assert main(["chat", "--model=x"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("/reset  starts afresh\n") and out.endswith("answer 1\n") and len(parrot.asked) == 1


def test_an_answer_has_the_room_that_is_left(parrot, monkeypatch, capsys):
    piped(monkeypatch, b"a" * 900 + b"\n")
    assert main(["chat", "--model=x"]) == 0
    assert 50 < parrot.asked[0][1].max_new_tokens < 100
    piped(monkeypatch, b"a" * 2000)
    assert main(["chat", "--model=x"]) == 2
    said = "mtnlg: error: the message is longer than the context of 1000 tokens (chat). Try: a shorter one, or a larger --context\n"
    assert capsys.readouterr().err == said


def test_a_long_conversation_loses_its_oldest_exchanges_but_not_the_system_message(parrot, monkeypatch, capsys):
    """Of 1000 tokens a quarter is the next answer's; each message here is of about 310."""
    piped(monkeypatch, b"".join(letter * 300 + b"\n" for letter in (b"a", b"b", b"c")))
    assert main(["chat", "--model=x", "--system=be brief"]) == 0
    turns = [[part.split("\n")[1][:1] for part in text.split("user")[1:]] for text, _ in parrot.asked]
    assert turns == [["a"], ["a", "b"], ["b", "c"]]
    assert all(text.startswith("system\nbe brief\nuser\n") for text, _ in parrot.asked)
    said = "mtnlg: the conversation is longer than the context of 1000 tokens: its 2 oldest messages are gone\n"
    assert capsys.readouterr().err == said


def test_nothing_steers_the_terminal(parrot, monkeypatch, capsys):
    parrot.write = lambda request, stop: written("a\tb\n\x1b[2J", "\x9b\r中")
    piped(monkeypatch, b"a\n")
    assert main(["chat", "--model=x"]) == 0
    assert capsys.readouterr().out == "a\tb\n\ufffd[2J\ufffd\ufffd中\n"


def test_no_text(parrot, monkeypatch, capsys):
    piped(monkeypatch, b"\xff\n")
    assert main(["chat", "--model=x"]) == 65
    assert "a line is not UTF-8" in capsys.readouterr().err


def test_a_model_without_a_template(parrot, monkeypatch, capsys):
    parrot.tokenizer.companions = parrot.tokenizer.companions._replace(template=None)
    piped(monkeypatch, b"a\n")
    assert main(["chat", "--model=x"]) == 65
    error = capsys.readouterr().err
    assert error.startswith("mtnlg: error: the model has no chat template (x). Try: python -m mtnlg generate") and error.count("\n") == 1


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_terminal(parrot, monkeypatch, capsys, end):
    """A turn that fails is told and forgotten; the conversation goes on, until Ctrl-C or Ctrl-D."""
    typed = iter(["one", "", "two", "three"])
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))

    def read(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise end from None

    monkeypatch.setattr("builtins.input", read)
    write = parrot.write

    def failing(request, stop):
        if "two" in parrot.tokenizer.decode(request.prompt):
            raise ConfigError("no", "here", "this")
        return write(request, stop)

    parrot.write = failing
    assert main(["chat", "--model=x"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("answer 1\nanswer 2\n\n", "mtnlg: error: no (here). Try: this\n")
    assert parrot.asked[1][0] == "user\none\nassistant\nanswer 1\nuser\nthree\nassistant\n"


def test_ctrl_c_ends_the_answer_and_not_the_conversation(parrot, monkeypatch, capsys):
    """A second one ends both."""
    typed = iter(["one", "two"])
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    closed, before = [], signal.getsignal(signal.SIGINT)

    def write(request, stop):
        parrot.asked.append((parrot.tokenizer.decode(request.prompt), request))
        try:
            for piece in written("well, ", "then", " more"):
                if piece.text == "then":
                    for _ in range(len(parrot.asked)):
                        os.kill(os.getpid(), signal.SIGINT)
                yield piece
        finally:
            closed.append(len(parrot.asked))

    parrot.write = write
    assert main(["chat", "--model=x"]) == 0
    assert capsys.readouterr().out == "well, then\nwell, \n"
    assert parrot.asked[1][0] == "user\none\nassistant\nwell, then\nuser\ntwo\nassistant\n"
    assert closed == [1, 2] and signal.getsignal(signal.SIGINT) is before
