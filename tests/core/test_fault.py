"""MTNLG_FAULT: which fault comes where."""

import signal
import subprocess
import sys

import pytest

from mtnlg.core import fault
from mtnlg.core.errors import ConfigError
from mtnlg.core.fault import Fault


def test_what_a_fault_is_called():
    text = "kill@phase:save,step:7;nan@;full@process:1,once:/a/b:c"
    assert fault.parse(text) == [Fault("kill", "save", 7), Fault("nan"), Fault("full", process=1, once="/a/b:c")]
    assert fault.parse("") == []


@pytest.mark.parametrize(
    "text", ["boom@", "kill@step:x", "kill@step", "kill@when:now", "kill@phase:lunch", "kill@step:1,step:2", "kill@step:-1"]
)
def test_what_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"is no fault \(MTNLG_FAULT\)\. Try: KIND@phase:PHASE.*publish"):
        fault.parse(text)


@pytest.mark.parametrize(
    ("text", "spoils"),
    [
        ("nan@", True),
        ("nan@phase:batch,step:3", True),
        ("nan@phase:batch,step:4", False),
        ("nan@phase:save", False),
        ("nan@process:0", True),
        ("nan@process:1", False),
        ("nan@step:9;nan@step:3", True),
    ],
)
def test_where_it_comes(text, spoils, monkeypatch, capfd):
    monkeypatch.setenv(fault.VARIABLE, text)
    assert fault.point("batch", 3, range(12, 16)) == ({"nan"} if spoils else set())
    assert ("mtnlg: MTNLG_FAULT: nan at batch of step 3" in capfd.readouterr().err) == spoils


def test_nothing_comes_unasked(monkeypatch):
    monkeypatch.delenv(fault.VARIABLE, raising=False)
    assert not fault.point("batch", 3)


def test_once_is_once(monkeypatch, tmp_path):
    monkeypatch.setenv(fault.VARIABLE, f"full@once:{tmp_path / 'spent'}")
    with pytest.raises(OSError, match="No space left"):
        fault.point("save", 1)
    assert not fault.point("save", 2)


@pytest.mark.parametrize("kind", ["kill", "term"])
def test_a_signal_is_its_own(kind):
    code = "from mtnlg.core import fault; fault.point('step', 2); fault.point('step', 3)"
    ended = subprocess.run([sys.executable, "-c", code], env={fault.VARIABLE: f"{kind}@step:3"}, capture_output=True, text=True)
    assert ended.returncode == -{"kill": signal.SIGKILL, "term": signal.SIGTERM}[kind]
    assert ended.stderr == f"mtnlg: MTNLG_FAULT: {kind} at step of step 3\n"
