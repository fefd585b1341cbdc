"""One writer at a time; what was run is on record; nothing recorded is lost."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from mtnlg.core import schema
from mtnlg.core.errors import CannotWrite, DataError, MissingInput
from mtnlg.run.folder import RunFolder, change_table, read_config

CONFIG = schema.Config(name="a", data=schema.Data(source=("x", "y"), weights=(0.25, 0.75)))
HOLD = """
import sys
from mtnlg.run.folder import RunFolder
with RunFolder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that holds tmp_path/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.stdin.close()


def test_a_second_writer_is_told_who_holds_the_folder(tmp_path, owner):
    who = re.escape(f"{owner.pid}@{socket.gethostname()} since 20")
    with pytest.raises(CannotWrite, match=who), RunFolder(tmp_path / "run"):
        pass


def test_a_killed_owner_blocks_nobody(tmp_path, owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    (tmp_path / "run" / "lock").write_text("a longer line than the next owner's " * 9)
    with RunFolder(tmp_path / "run") as run:
        assert re.fullmatch(rf"{os.getpid()}@{re.escape(socket.gethostname())} since \S+\n", (run.path / "lock").read_text())


def test_leaving_lets_go_and_the_same_process_is_refused_too(tmp_path):
    with RunFolder(tmp_path) as run, pytest.raises(CannotWrite, match=f"{os.getpid()}@"):
        RunFolder(tmp_path).__enter__()
    with run:
        pass


@pytest.mark.parametrize("below", ["run", "a/b/run"])
def test_workdir_below_a_file(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="Try: another --workdir") as raised, RunFolder(tmp_path / "file" / below):
        pass
    assert raised.value.exit_code == 73
    assert raised.value.where == str(tmp_path / "file" / below)


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_workdir_where_nothing_can_be_made():
    with pytest.raises(CannotWrite), RunFolder("/proc/self/run"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_workdir(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CannotWrite, match="Permission denied"), RunFolder(tmp_path):
        pass


def test_record_and_read_back(tmp_path):
    with RunFolder(tmp_path / "deep" / "run") as run:
        assert run.record(CONFIG, {"name": "a"}) == {}
    assert read_config(run.path) == CONFIG
    assert json.loads((run.path / "overrides.json").read_text()) == {"name": "a"}
    assert json.loads((run.path / "environment.json").read_text())["mtnlg"] == "0.1.0"
    assert sorted(os.listdir(run.path)) == ["config.json", "environment.json", "lock", "overrides.json"]


def test_resuming_returns_what_changed_and_keeps_every_old_file(tmp_path):
    longer = dataclasses.replace(CONFIG, seed=7, train=schema.Train(num_steps=2000))
    for config, changed in (
        (CONFIG, {}),
        (CONFIG, {}),
        (longer, {"seed": (1234, 7), "train.num_steps": (1000, 2000)}),
        (CONFIG, {"seed": (7, 1234), "train.num_steps": (2000, 1000)}),
    ):
        with RunFolder(tmp_path) as run:
            assert run.record(config, {"seed": str(config.seed)}) == changed
    seeds = [json.loads((tmp_path / name).read_text())["seed"] for name in ("config.1.json", "config.2.json", "config.json")]
    assert seeds == [1234, 7, 1234]
    assert {"overrides.1.json", "overrides.2.json"} < set(os.listdir(tmp_path))
    assert not (tmp_path / "config.3.json").exists()


def test_change_table():
    changed = {"seed": (1234, 7), "train.num_steps": (1000, 20000), "data.source": (("a",), ("b", "c"))}
    assert change_table(changed).splitlines() == [
        "seed              1234 -> 7",
        "train.num_steps   1000 -> 20000",
        'data.source      ["a"] -> ["b", "c"]',
    ]


@pytest.mark.parametrize(
    "text, error, message",
    [
        (None, MissingInput, "no run here: No such file"),
        ("{", DataError, "damaged config"),
        ("[1]", DataError, "damaged config"),
        ('{"model": {"moe_experts": 8}}', DataError, "another version of mtnlg: there is no key 'model.moe_experts'"),
        ('{"seed": "one"}', DataError, "another version"),
    ],
)
def test_folder_that_is_no_run(tmp_path, text, error, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message) as raised:
        read_config(tmp_path)
    assert raised.value.where == str(tmp_path / "config.json")


def test_a_key_newer_than_the_run_has_its_default(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 5}')
    assert read_config(tmp_path) == schema.Config(seed=5)
