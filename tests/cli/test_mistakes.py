"""What a user's mistake looks like: `mistakes.txt` has command lines, and of each the exit code and what is then on stderr.

After a change that is meant, MISTAKES=write python -m pytest tests/cli/test_mistakes.py writes the file anew: read its diff as a user.
A new mistake is a block of `# what it is` and `$ command` there; the same command adds the rest.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import types
from typing import NamedTuple
from unittest import mock

import pytest

from mtnlg.cli.main import VERBS, _overview, main
from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.train import peak
from tests.test_lm import CONFIG, write_run

ROOT = pathlib.Path(__file__).parent.parent.parent
GOLDEN = pathlib.Path(__file__).with_name("mistakes.txt")
WRITES = os.environ.get("MISTAKES") == "write"
ANEW = "MISTAKES=write python -m pytest tests/cli/test_mistakes.py"
EXIT_CODES = {int(code) for code in re.findall(r"[ \n](\d+) ", _overview().partition("Exit codes:")[2])} - {0, 130}
LISTS = ("the config contradicts itself:", "this graph cannot be built:")  # their lines say what to take or to try
INCURABLE = ("a workdir whose config is cut off",)  # it may come from a copy, or from nowhere
PROGRAM = "python -m mtnlg "


class Mistake(NamedTuple):
    """A block of the file. name: what it is; told: the exit code and stderr, as they stand there."""

    name: str
    command: str
    told: str

    def __str__(self) -> str:
        return f"# {self.name}\n$ {self.command}\n{self.told}"


def read() -> list[Mistake]:
    found = []
    for block in re.split(r"\n{2,}", GOLDEN.read_text()):
        if block.startswith("# "):
            name, command, *told = block.rstrip("\n").split("\n")
            found.append(Mistake(name.removeprefix("# "), command.removeprefix("$ "), "\n".join(told)))
    return found


MISTAKES = read()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the command lines speak of: {the word in them: what it stands for}, DIR and PORT; all of DIR, made once."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    data = schema.Data(source=(f"{folder}/docs.jsonl",), tokenizer=f"{folder}/run/tokenizer", directory=f"{folder}/prepared")
    small = dataclasses.replace(CONFIG, data=data, log=schema.Log(tensorboard=False))
    (folder / "small.json").write_text(json.dumps(configs.to_nested(small)))
    run, _ = write_run(folder / "run", small, {"samples": 12, "tokens": 576})
    for name, file, num_bytes in (("damaged", "meta.json", -1), ("cut_manifest", "MANIFEST.json", 99), ("cut_meta", "meta.json", 99)):
        path = shutil.copytree(run, folder / name) / "checkpoints" / "3" / file
        path.write_bytes(path.read_bytes()[:num_bytes])
    shutil.rmtree(shutil.copytree(run, folder / "no_tokenizer") / "tokenizer")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(text.encode("latin-1"))
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((folder / "busy" / "lock").open("r+"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        yield {"DIR": str(folder), "PORT": str(listener.getsockname()[1])}


FILES = {
    "busy/lock": "4242@node7 since 2026-01-02T03:04:05Z\n",
    "docs.jsonl": "\n".join(json.dumps({"text": f"the cat sat on mat {number}, and the dog lay under it " * 9}) for number in range(40)),
    "broken.jsonl": '{"text": "one"}\n{"text": \n',
    "empty.txt": "",
    "latin1.txt": "caf\xe9",
    "broken.json": '{"model": {',
    "text/docs.jsonl": '{"text": "one"}\n',
    "broken_config/config.json": '{"model": ',
    "broken_metrics/metrics.jsonl": '{"step": 1}\n{"st\n{"step": 3}\n',
    "ledger/goodput.jsonl": "".join(json.dumps({"step": step, "at": 9.0 + step, "secs/step": 1.0}) + "\n" for step in (0, 1)),
    "broken_ledger/goodput.jsonl": '{"step": 1}\n{"st\n{"step": 3}\n',
    "prompts.jsonl": '{"prompt": "a"}\n{"promt": "b"}\n',
    "good.jsonl": '{"prompt": "a"}\n',
    "group.json": '{"model": 3}',
    "latin1.json": '{"name": "caf\xe9"}',
    "keys": "short\n",
    "number.jsonl": '{"text": 5}\n',
    "tokens/manifest.json": '{"fingerprint": ',
    "gpt2/config.json": '{"model_type": "gpt2"}',
    "gpt2/model.safetensors": "",
    "model.gguf": "GGUF",
    "schedule.csv": "tick,stage,op\n0,0,F\n",
    "graph.py": "def get_graph():\n    return 3\n",
    "config.py": "from mtnlg.core import config\n\n\ndef get_config():\n    own = config.default()\n    own.model.num_layer = 3\n",
    "tokenizer.json": '{"model": ',
}


def told(command: str, world: dict[str, str]) -> tuple[str, str]:
    """(what is on stdout; the exit code and what is on stderr), with the words of the file for what differs from run to run."""
    assert command.startswith(PROGRAM)
    arguments = [_with(world, word) for word in shlex.split(command)[3:]]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said = err.getvalue()
    if arguments[0] == "train":  # which tells before it what becomes of the data, and how fast
        said = said[said.find("mtnlg: error: ") :]
    for word, meant in world.items():
        said = said.replace(meant, word)
    return out.getvalue(), f"exit {code}\n{said.removesuffix(chr(10))}"


def _with(world: dict[str, str], text: str) -> str:
    return re.sub(r"\b(DIR|PORT)\b", lambda found: world[found[0]], text)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    """As somebody who sits there and types nothing."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("MTNLG_API_KEY", raising=False)
    monkeypatch.setattr(peak, "best_gemm_flops_per_sec", lambda dtype: 1e11)
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_is_told(world, mistake):
    out, now = told(mistake.command, world)
    if WRITES:
        GOLDEN.write_text(GOLDEN.read_text().replace(str(mistake), str(mistake._replace(told=now))))
    else:
        assert now == mistake.told, f"meant to be so? {ANEW}"
    code, first, *_ = now.splitlines()
    assert int(code.removeprefix("exit ")) in EXIT_CODES
    assert first.startswith("mtnlg: error: ")
    assert re.search(r" \(.+\)\. Try: .+$", now) or first.endswith(LISTS) or mistake.name in INCURABLE
    assert "Traceback" not in out + now


def test_every_verb_is_there():
    verbs = {mistake.command.split()[3] for mistake in MISTAKES}
    assert len(MISTAKES) == GOLDEN.read_text().count("\n$ ") >= 60 and set(VERBS) <= verbs
    for one in (lambda mistake: mistake.name, lambda mistake: mistake.command):
        assert len(set(map(one, MISTAKES))) == len(MISTAKES)


def test_debug_shows_where_it_came_from(world):
    _, plain = told(PROGRAM + "ckpt ls DIR/empty", world)
    _, debug = told(PROGRAM + "ckpt ls DIR/empty --debug", world)
    code, line = plain.splitlines()
    assert debug.splitlines()[:2] == [code, "Traceback (most recent call last):"] and debug.splitlines()[-1] == line
