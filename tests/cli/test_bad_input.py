"""What takes more than a command line to be told well, or less; `test_mistakes.py` has the mistakes that a line of a file can say."""

import pathlib
import types

import jax
import pytest

from mtnlg.cli.main import main

ROOT = pathlib.Path(__file__).parent.parent.parent
DEMO = "--config=configs/demo.py"
HEAD = "from mtnlg.core import config as configs\n\n\ndef get_config():\n    config = configs.default()\n"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """As somebody who sits there and types nothing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))


@pytest.fixture
def stderr_of(capsys):
    """A function: what a command line writes to stderr, after `mtnlg: error: `, and its exit code. Nothing is on stdout."""

    def run(*arguments):
        code = main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("mtnlg: error: ") and err.endswith("\n")
        return err.removeprefix("mtnlg: error: ")[:-1], code

    return run


# Config files

EVERY_KEY = "Try: python -m mtnlg config --help lists every key"
LOCKED = 'AttributeError: Key "num_layer" does not exist and cannot be added since the config is locked.'
BROKEN = [
    ("    return 1 / 0\n", "ZeroDivisionError: division by zero"),
    ("    config.model.num_layer = 3\n", f'{LOCKED} Did you mean "num_layers" instead of "num_layer"?'),
    pytest.param("    import no_such\n", "ModuleNotFoundError: No module named 'no_such'", id="a quote at the end"),
    pytest.param("    return config)\n", "SyntaxError: unmatched ')'", id="a syntax error"),
]


@pytest.mark.parametrize(("text", "what"), BROKEN)
def test_an_error_in_a_config_names_its_line(stderr_of, tmp_path, text, what):
    (tmp_path / "own.py").write_text(HEAD + text)
    line, code = stderr_of("config", f"--config={tmp_path / 'own.py'}")
    assert (line, code) == (f"{what} ({tmp_path / 'own.py'}:6). {EVERY_KEY}", 2)


def test_a_relative_path_names_the_line_too(stderr_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(HEAD + "    return 1 / 0\n")
    assert stderr_of("config", "--config=own.py") == (f"ZeroDivisionError: division by zero (own.py:6). {EVERY_KEY}", 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.json", "{"),
        ("own.py", "x = 1\n"),
        ("own.py", HEAD + "    assert False\n"),
        pytest.param("own.json", "[1]"),
        pytest.param("own.py", HEAD, id="a config that is not returned"),
    ],
)
def test_a_config_that_gives_none(stderr_of, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    line, code = stderr_of("config", f"--config={tmp_path / name}")
    assert str(tmp_path / name) in line and code == 2


# The mesh


@pytest.mark.parametrize("how", ["--workdir", "--dry_run"])
def test_stages_without_layers_for_them(stderr_of, tmp_path, monkeypatch, how):
    """Before any device is asked for and any file is written."""
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("a device was asked for"))
    staged = ["--config.mesh.pipe=2", "--config.train.microbatch_size=2", "--config.train.unroll_layers=false", "--config.sample.prompts="]
    arguments = [*staged, "--config.pipeline.layers_per_stage=3,2", "--dry_run" if how == "--dry_run" else f"--workdir={tmp_path / 'run'}"]
    key = "pipeline.layers_per_stage"
    line = f"{key}=3,2 is not 2 numbers of 0 or more, one for each part of the model, that add up to model.num_layers=4 (--config.{key})"
    assert stderr_of("train", DEMO, *arguments) == (f"{line}. Try: --config.{key}=2,2", 2)
    assert not (tmp_path / "run").exists()


def test_more_devices_than_there_are(stderr_of, tmp_path):
    line, code = stderr_of("train", DEMO, "--config.mesh.data=8", "--config.mesh.tensor=4", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and line.startswith("mesh.data=8 x mesh.tensor=4 needs 32 devices, and there are 16 (--config.mesh). Try: ")
    assert not (tmp_path / "run").exists()


# Generating


def test_a_prompt_that_is_not_text(stderr_of):
    line = "the prompt is not UTF-8: invalid start byte at byte 1 (--prompt). Try: iconv -t UTF-8"
    assert stderr_of("generate", "--prompt=a\udcff", "--workdir=x") == (line, 65)


@pytest.mark.parametrize(
    ("said", "is_told"), [("UNKNOWN: Gloo AllReduce failed: Connection closed by peer\nand more", True), ("OOM", False)]
)
def test_a_collective_that_lost_its_peer_is_one_line(said, is_told):
    """And only that: any other error of jax keeps its traceback."""
    from mtnlg.cli.main import _lost_peer

    found = _lost_peer(jax.errors.JaxRuntimeError(said))
    assert (found is not None) == is_told
    assert not is_told or (found.exit_code == 69 and "\n" not in str(found))
