"""`mtnlg generate`: the prompt, and after it the text piece by piece; what it is asked, cut, and told."""

import io
import json
import os
import types

import pytest

from mtnlg import lm
from mtnlg.cli.generate import in_order
from mtnlg.cli.main import main
from mtnlg.core.errors import ConfigError
from mtnlg.infer.request import Request, Token
from mtnlg.text_engine import Written
from tests.test_lm import CONFIG, write_run

NO_DRAFT = {"draft": None, "num_drafted": 4, "unroll_layers": None}


class Echo:
    """A model that says its prompt again, word by word."""

    path = asked = None
    seq_len = 80
    notes = ()
    drafts = None

    def __init__(self):
        self.engine = types.SimpleNamespace(
            context=80, config=types.SimpleNamespace(model=types.SimpleNamespace(position="rope", seq_len=80))
        )

    def request_of(self, ask):
        self.asked = ask
        return Request(ask.prompt.split(), **ask.sampling), None

    def write(self, request, stop):
        yield from (Written(1, f" {word}", Token(1), None, 0) for word in request.prompt)


@pytest.fixture
def echo(monkeypatch):
    model = Echo()

    def from_pretrained(path, mesh, **settings):
        model.path, model.mesh, model.settings = path, mesh, settings
        return model

    monkeypatch.setattr(lm, "from_pretrained", from_pretrained)
    return model


def test_prompt_and_text(echo, capsys):
    given = {"max_new_tokens": 9, "temperature": 0.0, "top_k": 3, "top_p": 0.5, "seed": 7, "min_p": 0.1, "repetition_penalty": 1.1}
    given |= {"presence_penalty": 0.2, "frequency_penalty": 0.3}
    options = [f"--{name}={value}" for name, value in given.items()]
    options += [
        "--stop=a",
        "--stop",
        "b",
        "--stop_id=4",
        "--logit_bias=3=-1.5",
        "--logit_bias=5=2",
        "--truncate=left",
        "--keep=2",
        "--slide",
    ]
    assert main(["generate", "--workdir=runs/x", "--prompt=the 中文", *options]) == 0
    assert capsys.readouterr().out == "the 中文 the 中文\n"
    given |= {"stop_ids": frozenset({4}), "logit_bias": {3: -1.5, 5: 2.0}, "num_likeliest": None, "slide": True}
    assert echo.asked == lm.Ask("the 中文", ["a", "b"], "left", 2, given)


def test_defaults_are_those_of_a_request(echo):
    assert main(["generate", "--model=runs/x/checkpoints/3", "--prompt=a"]) == 0
    assert echo.asked.sampling == {name: value for name, value in Request([])._asdict().items() if name != "prompt"}
    assert echo.path == "runs/x/checkpoints/3"
    assert echo.settings == {"num_rows": 1, "context": None, "rope_scaling": "none", "int8": (), "int8_text": None, **NO_DRAFT}


def test_how_the_model_is_read(echo, capsys):
    echo.notes = ["it is small", "it is old"]
    options = ["--context=99", "--rope_scaling=linear", "--int8=weights,cache", "--int8_text=f"]
    assert main(["generate", "--model=x", "--prompt=a", *options]) == 0
    assert echo.settings == {
        "num_rows": 1,
        "context": 99,
        "rope_scaling": "linear",
        "int8": ("weights", "cache"),
        "int8_text": "f",
        **NO_DRAFT,
    }
    assert capsys.readouterr().err == "mtnlg: it is small\nmtnlg: it is old\n"


def test_on_a_terminal_what_takes_long_is_told_before(echo, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    echo.notes = ["it cost"]
    assert main(["generate", "--model=x", "--prompt=a", "--int8=cache"]) == 0
    said = ["reading x, and measuring what eight bits cost, which takes a while", "it cost", "compiling; the text begins after that"]
    assert screen.getvalue() == "".join(f"mtnlg: {line}\n" for line in said)


@pytest.mark.parametrize("option", [["--prompt=-"], []])
def test_prompt_from_standard_input(echo, monkeypatch, capsys, option):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("def é".encode())))
    assert main(["generate", "--model=x", *option]) == 0
    assert capsys.readouterr().out == "def é def é\n"


def test_a_reader_that_goes_away_is_no_error(echo, monkeypatch):
    """As in `mtnlg generate ... | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["generate", "--model=x", "--prompt=a b"]) == 0


def test_a_terminal_is_not_steered(echo, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["generate", "--model=x", "--prompt=a\x1b[2Jb"]) == 0
    assert screen.getvalue() == "a\x1b[2Jb a\ufffd[2Jb\n", "what the user gave, and what the model wrote"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature=-1"], "temperature=-1.0 is out of range (--temperature). Try: 0 (greedy) or more"),
        (["--temperature=nan"], "temperature=nan is out of range (--temperature). Try: 0 (greedy) or more"),
        (["--stop=a", "--stop="], "an empty stop text ends nothing (--stop). Try: --stop=TEXT"),
        (["--logprobs=21"], "num_likeliest=21 is out of range (--logprobs). Try: 0 to 20, or none"),
        (["--logit_bias=3"], "'3' is no bias (--logit_bias). Try: --logit_bias=ID=NUMBER, as 42=-5"),
        (["--context=0"], "context=0 is out of range (--context). Try: 1 or more"),
        (["--beams=2", "--top_k=3"], "a beam search finds the likeliest texts: --top_k has no say in it (--beams). Try: one of the two"),
        (
            ["--beams=2", "--logprobs=1"],
            "a beam search finds the likeliest texts: --logprobs has no say in it (--beams). Try: one of the two",
        ),
        (["--beams=2", "--n=2"], "a beam search finds the likeliest texts: --n has no say in it (--beams). Try: one of the two"),
        (["--n=0"], "n=0 is out of range (--n). Try: 1 or more"),
        (["--int8=both"], "'both' cannot be kept in eight bits (--int8). Try: --int8=weights, --int8=cache or --int8=weights,cache"),
        (["--int8_text=a"], "there is nothing to measure without --int8 (--int8_text). Try: --int8=weights"),
        (["--keep=3"], "keep=3 keeps nothing where nothing is cut (--keep). Try: --truncate=left or --truncate=middle beside it"),
        (["--out=a"], "--in and --out belong together, without --prompt (command line). Try: --in=FILE.jsonl --out=FILE.jsonl"),
        (
            ["--in=a", "--out=a"],
            "--in and --out belong together, without --prompt (command line). Try: --in=FILE.jsonl --out=FILE.jsonl",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_read(echo, capsys, options, said):
    assert main(["generate", "--model=x", "--prompt=a", *options]) == 2
    assert capsys.readouterr() == ("", f"mtnlg: error: {said}\n") and echo.path is None


def test_texts_of_a_file_stand_without_their_prompts(echo, capsys):
    assert main(["generate", "--model=x", "--in=a", "--out=b", "--echo=yes"]) == 2
    said = "mtnlg: error: the texts of --in stand without their prompts (--echo). Try: --echo=no, or none\n"
    assert capsys.readouterr() == ("", said) and echo.path is None


@pytest.mark.parametrize(
    ("position", "context", "words", "cure"),
    [
        ("rope", 80, 2, "--context=81 or --max_new_tokens=78 or --slide"),
        ("learned", 80, 2, "--max_new_tokens=78 or --slide"),
        ("learned", 40, 2, "--context=80 or --max_new_tokens=38 or --slide"),
        ("rope", 40, 2, "--context=80 or --context=81 or --max_new_tokens=38 or --slide"),
        ("learned", 80, 90, "--truncate=left"),
        ("alibi", 80, 90, "--context=169 or --truncate=left"),
    ],
)
def test_more_than_the_context(echo, capsys, position, context, words, cure):
    echo.engine.context, echo.engine.config.model.position = context, position
    prompt = f"--prompt={' '.join(['a'] * words)}"
    assert main(["generate", "--workdir=runs/x", prompt, "--max_new_tokens=79"]) == 2
    what = f"{words} tokens of prompt and 79 new ones exceed the context of {context} (--prompt)"
    assert capsys.readouterr() == ("", f"mtnlg: error: {what}. Try: {cure}\n")
    if words < context:
        assert main(["generate", "--workdir=runs/x", prompt, f"--max_new_tokens={context - words}"]) == 0
        assert main(["generate", "--workdir=runs/x", prompt, "--max_new_tokens=79", "--slide"]) == 0


def test_of_a_text_that_slides_the_prompt_has_to_fit(echo, capsys):
    assert main(["generate", "--workdir=runs/x", f"--prompt={'a ' * 80}", "--slide"]) == 2
    what = "80 tokens of prompt leave no room in the context of 80 (--prompt)"
    assert capsys.readouterr().err == f"mtnlg: error: {what}. Try: --context=81 or --truncate=left\n"


def test_the_prompt_is_left_out_if_so_said(loaded, capsys):
    assert main(["generate", "--model=x", "--prompt=the cat", "--echo=no", "--max_new_tokens=3"]) == 0
    assert capsys.readouterr().out == loaded.complete("the cat", max_new_tokens=3) + "\n"
    assert main(["generate", "--model=x", "--prompt=the cat", "--echo=no", "--n=2", "--max_new_tokens=3"]) == 0
    texts = [loaded.complete("the cat", seed=seed, max_new_tokens=3) for seed in (0, 1)]
    assert capsys.readouterr().out == f"--- seed 0\n{texts[0]}\n--- seed 1\n{texts[1]}\n"
    assert main(["generate", "--model=x", "--prompt=the cat", "--echo=no", "--beams=1", "--max_new_tokens=3"]) == 0
    ((text, logprob),) = loaded.beam_search("the cat", 1, max_new_tokens=3)
    assert capsys.readouterr().out == f"--- log-probability {logprob:.3f}\n{text}\n"


# A real model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("written") / "run")[0]


@pytest.fixture(scope="module")
def model(folder):
    return lm.from_pretrained(folder, num_rows=2)


@pytest.fixture
def loaded(model, monkeypatch):
    monkeypatch.setattr(lm, "from_pretrained", lambda path, mesh, **settings: model)
    return model


def test_several_texts_with_seeds_that_follow_each_other(loaded, capsys):
    assert main(["generate", "--model=x", "--prompt=the cat", "--n=3", "--seed=4294967294", "--max_new_tokens=7"]) == 0
    texts = [(seed, loaded.complete("the cat", seed=seed, max_new_tokens=7)) for seed in (2**32 - 2, 2**32 - 1, 0)]
    assert capsys.readouterr().out == "".join(f"--- seed {seed}\nthe cat{text}\n" for seed, text in texts)
    assert len({text for _, text in texts}) == 3


def test_log_probabilities_are_those_told(loaded, capsys):
    assert main(["generate", "--model=x", "--prompt=the cat", "--max_new_tokens=3", "--logprobs=2"]) == 0
    head, rows = capsys.readouterr().out.split("\n\n  logprob  token\n")
    answer = loaded.answer("the cat", max_new_tokens=3, num_likeliest=2)
    assert head == "the cat" + answer.text and len(rows.splitlines()) == 3
    for row, token in zip(rows.splitlines(), answer.tokens, strict=True):
        assert row.startswith(f'{token.logprob:9.3f}  "') and row.endswith(f" {token.likeliest[1][1]:.3f}")
        assert json.loads(row[11:].split('"  ')[0] + '"') == loaded.tokenizer.decode_bytes([token.id]).decode(errors="replace")


def test_the_likeliest_texts(loaded, capsys):
    assert main(["generate", "--model=x", "--prompt=the cat", "--beams=2", "--max_new_tokens=3", "--length_penalty=0.5"]) == 0
    found = loaded.beam_search("the cat", 2, max_new_tokens=3, length_penalty=0.5)
    assert capsys.readouterr().out == "".join(f"--- log-probability {logprob:.3f}\nthe cat{text}\n" for text, logprob in found)
    assert len(found) == 2 and found[0] != found[1]
    assert main(["generate", "--model=x", "--prompt=the cat", "--beams=0", "--max_new_tokens=3"]) == 2
    assert "beams=0 is out of range (--beams). Try: 1 or more" in capsys.readouterr().err


def test_what_was_drafted_is_told(echo, capsys):
    echo.drafts = (3, 8)
    assert main(["generate", "--model=x", "--prompt=a"]) == 0
    assert capsys.readouterr().err == "mtnlg: 3 of 8 drafted tokens were taken\n"


@pytest.mark.parametrize(("policy", "first"), [("left", 1), ("middle", 2)])
def test_what_is_cut_is_told(loaded, capsys, policy, first):
    words = "the cat sat on the mat and the dog lay under the table " * 9
    options = ["--max_new_tokens=44", f"--truncate={policy}", "--keep=1"]
    assert main(["generate", "--model=x", f"--prompt={words}", *options]) == 0
    said, length = capsys.readouterr(), len(loaded.prompt_ids(words))
    answer = loaded.answer(words, truncate=policy, keep=1, max_new_tokens=44)
    assert said.out == words + answer.text + "\n" and tuple(answer.cut) == (first, length - 4 + first)
    assert said.err == f"mtnlg: tokens {first} to {length - 5 + first} of the prompt are cut out: there is no room for them\n"


def test_that_a_text_slid_is_told(loaded, capsys):
    assert main(["generate", "--model=x", "--prompt=the", "--max_new_tokens=60", "--slide"]) == 0
    said = capsys.readouterr().err
    assert said == "mtnlg: the text came to the end of the context of 48 tokens, and went on with its last half once\n"
    assert loaded.answer("the", max_new_tokens=60, slide=True).slides == 1


def test_a_bias_beyond_the_vocabulary_is_refused_before_anything_is_written(loaded, capsys):
    assert main(["generate", "--model=x", "--prompt=the", "--max_new_tokens=9", "--logit_bias=999=1"]) == 2
    assert capsys.readouterr() == ("", "mtnlg: error: the logit_bias has ids beyond the vocabulary of 300 (--logit_bias)\n")


def test_a_model_that_cannot_have_it_says_so(folder, capsys):
    assert main(["generate", f"--model={folder}", "--prompt=a", "--context=99"]) == 2
    assert "a context of 99 tokens, and the model has 48 learned positions (--context). Try: 48 or less" in capsys.readouterr().err
    assert main(["generate", f"--model={folder}", "--prompt=a", "--context=99", "--rope_scaling=linear"]) == 2
    said = "positions are of the kind learned: only rotary ones can be scaled (--rope_scaling). Try: --rope_scaling=none\n"
    assert said in capsys.readouterr().err
    with pytest.raises(ConfigError):
        lm.from_pretrained(folder, context=CONFIG.model.seq_len + 1)


def test_the_model_of_the_examples_is_fetched_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--model=runs/chat/smollm2", "--prompt=a"]) == 66
    assert capsys.readouterr().err == "mtnlg: error: it is not fetched yet (runs/chat/smollm2). Try: make chat\n"


def test_in_order():
    """Each as soon as those before it are there."""
    came = []
    numbers = (came.append(n) or (n, str(n)) for n in (2, 0, 1, 3))
    assert [(n, item, len(came)) for n, item in in_order(numbers)] == [(0, "0", 2), (1, "1", 3), (2, "2", 3), (3, "3", 4)]
