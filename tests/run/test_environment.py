"""The record of what a run was started with, and that no secret gets into it."""

import json
import platform
import re
import shutil
import subprocess
import sys

import pytest

from mtnlg.core import schema
from mtnlg.run import environment
from mtnlg.run.redact import redact


def test_snapshot_says_what_ran(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "mtnlg", "train", "--hub_token=hunter2"])
    seen = json.loads(json.dumps(environment.snapshot()))
    assert seen["python"] == platform.python_version()
    assert set(seen["packages"]) == set(environment.PACKAGES)
    assert seen["packages"]["numpy"]
    assert seen["command"] == ["python", "-m", "mtnlg", "train", "--hub_token=***"]
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", seen["started"])


def test_jax_is_named_without_being_imported():
    code = "import sys; from mtnlg.run import environment; print(environment.snapshot()['packages']['jax'], 'jax' in sys.modules)"
    assert re.match(r"\d.* False", subprocess.check_output([sys.executable, "-c", code], text=True))


@pytest.fixture
def checkout(tmp_path):
    if not shutil.which("git"):
        pytest.skip("needs git")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "__init__.py").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "code"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_git_commit_and_dirty_flag(checkout, monkeypatch):
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=checkout, text=True).strip()
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as inside another repository's hook
    (checkout / "notes.txt").write_text("not code")
    assert environment.git_state(checkout / "code") == {"git": {"commit": commit, "dirty": False}}
    (checkout / "code" / "new.py").write_text("")
    assert environment.git_state(checkout / "code") == {"git": {"commit": commit, "dirty": True}}


def test_no_git_state_where_the_code_is_not_tracked(checkout, monkeypatch):
    installed = checkout / ".venv" / "code"  # somebody else's repository around an installed package
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert environment.git_state(installed) == {}
    monkeypatch.setenv("PATH", "")  # no git at all
    assert environment.git_state(checkout / "code") == {}


HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "arguments, safe",
    [
        (["--api-key", "abc", "x"], ["--api-key", "***", "x"]),
        (["--hf.token=abc"], ["--hf.token=***"]),
        (["HF_TOKEN=abc", "WANDB_API_KEY=abc"], ["HF_TOKEN=***", "WANDB_API_KEY=***"]),
        (["--password", "--debug"], ["--password", "--debug"]),
        (["--hub=hf_abcdefghijk"], ["--hub=***"]),
        (["sk-proj-abcdefgh"], ["***"]),
        ([f"--x={HEX}"], ["--x=***"]),
        (["--from=https://me:pw@host/x"], ["--from=https://***@host/x"]),
    ],
)
def test_secrets_are_masked(arguments, safe):
    assert redact(arguments) == safe


def test_nothing_else_is_masked():
    plain = ["python", "-m", "mtnlg", "--monkey=5", "--workdir=runs/2026-11-20-gpt-124m-long-name-of-a-run-42", "--config=configs/demo.py"]
    plain += [f"--config.{name}=100000" for name in schema.leaves()] + [f"--config.data.tokenizer=/cache/snapshots/{HEX}/tokenizer.json"]
    assert redact(plain) == plain
