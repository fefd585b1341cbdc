"""What a user's mistake looks like: one line, or one line and a list, with key, value and cure; and the exit code."""

import pathlib
import types

import jax
import pytest

from mtnlg import weights
from mtnlg.cli.main import VERBS, main
from mtnlg.data import tokenizer as tokenizers

ROOT = pathlib.Path(__file__).parent.parent.parent
DEMO = "--config=configs/demo.py"
SHIPPED = ", ".join(sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")))
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


USAGE = {
    "a misspelt verb": (["trian"], f"there is no verb 'trian' (command line). Try: one of {', '.join(VERBS)}"),
    "an unknown argument": (["config", DEMO, "--wat=3"], "unknown argument '--wat=3' (command line). Try: --help"),
    "an unknown argument of generate": (
        ["generate", "--prompt=a", "--model=b", "--wat"],
        "unknown argument '--wat' (command line). Try: --help",
    ),
    "a key that generate does not take": (
        ["generate", "--prompt=a", "--model=b", "--config.train.num_steps=3"],
        "this verb does not take --config.train.num_steps (command line). Try: --config.mesh.tensor=4, or another degree of the mesh",
    ),
    "a key of the mesh that means nothing to generate": (
        ["generate", "--prompt=a", "--model=b", "--config.mesh.zero=3"],
        "this verb does not take --config.mesh.zero (command line). Try: --config.mesh.tensor=4, or another degree of the mesh",
    ),
    "no config": (["train", "--workdir=runs/x"], f"no config is named (command line). Try: --config=FILE, one of {SHIPPED}"),
    "two configs": (
        ["config", DEMO, "--config=configs/sc21.py"],
        "--config is given twice: 'configs/demo.py' and 'configs/sc21.py' (command line). Try: one of them",
    ),
    "a key twice": (
        ["config", DEMO, "--config.seed=1", "--config.seed", "2"],
        "--config.seed is given twice: '1' and '2' (command line). Try: one of them",
    ),
    "no workdir": (["train", DEMO], "no folder is named for the run (command line). Try: --workdir=runs/NAME"),
    "an empty workdir": (["train", DEMO, "--workdir="], "no folder is named for the run (command line). Try: --workdir=runs/NAME"),
    "an empty workdir of the demo": (["demo", "--workdir="], "no folder is named for the run (command line). Try: --workdir=runs/NAME"),
    "no prompt": (
        ["generate", "--workdir=runs/x"],
        "there is no prompt (command line). Try: --prompt=TEXT, or a text on standard input",
    ),
    "no model": (["generate", "--prompt=a"], "name one model (command line). Try: --workdir=RUN or --model=PATH"),
    "two models": (
        ["generate", "--prompt=a", "--workdir=a", "--model=b"],
        "name one model (command line). Try: --workdir=RUN or --model=PATH",
    ),
    "an empty model": (["generate", "--prompt=a", "--workdir="], "name one model (command line). Try: --workdir=RUN or --model=PATH"),
    "a temperature that is no number": (
        ["generate", "--prompt=a", "--temperature=hot"],
        "'hot' is no number (--temperature). Try: --temperature=N",
    ),
    "a whole number that is none": (
        ["generate", "--prompt=a", "--top_k=abc"],
        "'abc' is no whole number (--top_k). Try: --top_k=N",
    ),
    "a misspelt option": (
        ["generate", "--promt=a", "--model=b", "--config.mesh.tensor", "2"],
        "unknown argument '--promt=a' (command line). Try: --prompt",
    ),
    "a choice that there is not": (
        ["generate", "--prompt=a", "--model=b", "--echo=maybe"],
        "invalid choice: 'maybe' (choose from 'yes', 'no') (--echo). Try: python -m mtnlg generate --help",
    ),
    "a job of no process": (
        ["launch", "local", "--processes=0", "--", "train"],
        "--processes=0 must be at least 1 (command line). Try: --processes=2",
    ),
    "processes without devices": (
        ["launch", "local", "--processes=2", "--devices=0", "--", "train"],
        "--devices=0 must be at least 1 (command line). Try: --devices=2",
    ),
    "a job without a number": (
        ["launch", "local", "--", "train"],
        "the following arguments are required: --processes (command line). Try: python -m mtnlg launch --help",
    ),
    "a job elsewhere": (
        ["launch", "moon", "--processes=2"],
        "argument where: invalid choice: 'moon' (choose from 'local') (command line). Try: python -m mtnlg launch --help",
    ),
    "a job of nothing": (
        ["launch", "local", "--processes=2"],
        "launch starts train, not nothing (command line). Try: -- train --config=FILE --workdir=DIR at its end",
    ),
    "a job that is no training": (
        ["launch", "local", "--processes=2", "--", "generate", "--prompt=a"],
        "launch starts train, not generate (command line). Try: -- train --config=FILE --workdir=DIR at its end",
    ),
    "an unknown argument of launch": (
        ["launch", "local", "--processes=2", "--device=4", "--", "train"],
        "unknown argument '--device=4' (command line). Try: python -m mtnlg launch --help",
    ),
    "a demo of two sources": (
        ["demo", "--config.data.source=a,b"],
        "the demo compares models on one source (data.source). Try: python -m mtnlg train for several",
    ),
}

KEYS = {
    "model.num_layer=3": "there is no key 'model.num_layer' (--config.model.num_layer). Try: --config.model.num_layers",
    "num_layers=3": "there is no key 'num_layers' (--config.num_layers). Try: --config.model.num_layers",
    "train.learning_rat=3": "there is no key 'train.learning_rat' (--config.train.learning_rat). Try: --config.optimizer.learning_rate",
    "model=3": "model is a group of keys, not a key (--config.model). Try: --config.model.num_layers=VALUE",
    "seed": "--config.seed has no value (command line). Try: --config.seed=VALUE",
    "model.position=sinus": (
        "model.position='sinus' is not one of learned, rope, alibi, none (model.position). Try: --config.model.position=learned"
    ),
    "train.num_steps=many": "train.num_steps='many' is not a int (--config.train.num_steps). Try: --config.train.num_steps=1000",
    "train.num_steps=1.5": "train.num_steps='1.5' is not a int (--config.train.num_steps). Try: --config.train.num_steps=1000",
    "optimizer.beta1=fast": "optimizer.beta1='fast' is not a float (--config.optimizer.beta1). Try: --config.optimizer.beta1=0.9",
    "log.tensorboard=yes": "log.tensorboard='yes' is not a bool (--config.log.tensorboard). Try: --config.log.tensorboard=True",
    "data.weights=1,much": "data.weights='1,much' is not a tuple[float, ...] (--config.data.weights). Try: --config.data.weights=()",
    "model.num_heads=5": (
        "the config contradicts itself:\n"
        "  - model.d_model=192 does not divide by model.num_heads=5: take model.num_heads=4, or set model.head_dim (configs/demo.py)"
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_usage(stderr_of, name):
    arguments, line = USAGE[name]
    assert stderr_of(*arguments) == (line, 2)


@pytest.mark.parametrize("override", KEYS)
def test_keys_and_values(stderr_of, override):
    assert stderr_of("config", DEMO, f"--config.{override}") == (KEYS[override], 2)


def test_all_contradictions_at_once(stderr_of):
    values = ("model.num_heads=5", "model.dropout_hidden=1", "optimizer.clip_norm=0", "data.weights=1,2", "train.num_steps=-1")
    assert stderr_of("train", DEMO, *(f"--config.{value}" for value in values)) == (
        "the config contradicts itself:\n"
        "  - train.num_steps=-1 must not be negative\n"
        "  - optimizer.clip_norm=0.0 must be above 0 and finite\n"
        "  - model.dropout_hidden=1.0 is not in [0, 1)\n"
        "  - model.d_model=192 does not divide by model.num_heads=5: take model.num_heads=4, or set model.head_dim\n"
        "  - data.weights has 2 numbers for 1 sources (configs/demo.py)",
        2,
    )


# Config files


@pytest.mark.parametrize(
    ("path", "cure"), [("configs/demos.py", "--config=configs/demo.py"), ("x/y.py", "a path that exists, as configs/demo.py")]
)
def test_a_missing_config(stderr_of, path, cure):
    assert stderr_of("config", f"--config={path}") == (f"--config={path}: there is no such file ({path}). Try: {cure}", 2)


def test_a_config_that_is_neither_python_nor_json(stderr_of):
    assert stderr_of("config", "--config=README.md") == ("a config is a .py or a .json file (README.md)", 2)


def test_an_argument_for_a_config_that_takes_none(stderr_of):
    line = "this config takes no argument, so '9b' means nothing (configs/demo.py). Try: --config=configs/demo.py"
    assert stderr_of("config", f"{DEMO}:9b") == (line, 2)
    assert stderr_of("config", "--config=configs/sc21.py:9b")[0].startswith(
        "the table has no size '9b' (configs/sc21.py). Try: one of 1.7b"
    )


def test_an_argument_for_a_json_config(stderr_of, tmp_path):
    path = tmp_path / "own.json"
    path.write_text("{}")
    line = f"a .json config takes no argument, so '9b' means nothing ({path}). Try: --config={path}"
    assert stderr_of("config", f"--config={path}:9b") == (line, 2)


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


# The mesh and the data: found out by the programs themselves


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


@pytest.mark.parametrize(
    ("name", "content", "line", "code"),
    [
        ("no.txt", None, "there is no file or folder '{path}' (data.source). Try: a path that exists, or --config.data.source=python", 66),
        ("empty.txt", b"", "no document is left of {path}: 1 empty (data.source). Try: text in UTF-8", 65),
        ("latin1.txt", b"caf\xe9", "no document is left of {path}: 1 invalid utf-8 (data.source). Try: text in UTF-8", 65),
        ("bad.jsonl", b"{\n", None, 65),
        (
            "text.pdf",
            b"a",
            "'{path}' is not a kind of file that is read (data.source). Try: one of .txt, .txt.gz, .txt.zst, .jsonl, .jsonl.gz, .jsonl.zst",
            2,
        ),
    ],
)
def test_a_source_without_text(stderr_of, tmp_path, name, content, line, code):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    got = stderr_of("train", DEMO, f"--workdir={tmp_path / 'run'}", f"--config.data.source={path}")
    assert got[1] == code
    assert got[0] == line.format(path=path) if line else str(path) in got[0]


def test_a_tokenizer_larger_than_the_vocabulary(stderr_of, tmp_path):
    path = tmp_path / "own.model"
    tokenizers.train(["the cat sat on the mat"] * 9, path, kind="bpe", vocab_size=270, max_bytes=1000)
    arguments = [f"--config.data.tokenizer={path}", "--config.model.vocab_size=265", f"--workdir={tmp_path / 'run'}"]
    line = f"the tokenizer has 270 tokens, model.vocab_size=265 has room for fewer (data.tokenizer={path})"
    assert stderr_of("train", DEMO, *arguments) == (f"{line}. Try: --config.model.vocab_size=270", 2)


@pytest.mark.parametrize("verb", ["train", "demo"])
def test_a_workdir_below_a_file(stderr_of, tmp_path, verb):
    (tmp_path / "file").write_text("")
    cure = "another --workdir, --config.data.directory or --output, or its owner's permission"
    line = f"cannot write: Not a directory ({tmp_path / 'file' / 'run'}). Try: {cure}"
    assert stderr_of(verb, DEMO, f"--workdir={tmp_path / 'file' / 'run'}") == (line, 73)


# Generating


def test_a_model_that_is_not_there(stderr_of, tmp_path):
    line = f"there is no model ({tmp_path}). Try: {weights.WHAT_IS_READ}"
    assert stderr_of("generate", "--prompt=a", f"--workdir={tmp_path}") == (line, 66)


def test_a_prompt_that_is_not_text(stderr_of):
    line = "the prompt is not UTF-8: invalid start byte at byte 1 (--prompt). Try: iconv -t UTF-8"
    assert stderr_of("generate", "--prompt=a\udcff", "--workdir=x") == (line, 65)


def test_debug_shows_where_it_came_from(capsys):
    assert main(["trian", "--debug"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "mtnlg: error: there is no verb 'trian'" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("said", "is_told"), [("UNKNOWN: Gloo AllReduce failed: Connection closed by peer\nand more", True), ("OOM", False)]
)
def test_a_collective_that_lost_its_peer_is_one_line(said, is_told):
    """And only that: any other error of jax keeps its traceback."""
    from mtnlg.cli.main import _lost_peer

    found = _lost_peer(jax.errors.JaxRuntimeError(said))
    assert (found is not None) == is_told
    assert not is_told or (found.exit_code == 69 and "\n" not in str(found))
