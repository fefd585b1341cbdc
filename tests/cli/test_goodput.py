"""`mtnlg goodput` of a run's folder."""

import pytest

from mtnlg.cli.main import main
from mtnlg.run import goodput
from mtnlg.run.goodput import Ledger
from mtnlg.run.phases import Phases


@pytest.fixture
def folder(tmp_path):
    """A minute of which three quarters were steps that lasted."""
    phases_secs, wall_secs = iter([0, 5, 5, 60, 60]), iter([1005, 1060])
    phases = Phases(lambda: next(phases_secs))
    ledger = Ledger(tmp_path / goodput.FILE, phases, lambda: next(wall_secs))
    ledger.begin(0)
    phases.turn("step")
    ledger.write(11)
    ledger.close()
    return tmp_path


def test_a_table_and_a_picture(folder, capsys):
    assert main(["goodput", str(folder)]) == 0
    _, step, init, _, ettr, picture = capsys.readouterr().out.splitlines()
    assert step.split()[:4] == ["step", "55.0", "91.7", "%"] and init.split()[:4] == ["init", "5.0", "8.3", "%"]
    assert ettr == "ETTR 91.7 % of 01:00 in 1 start"
    assert picture == str(folder / "goodput.png") and (folder / "goodput.png").is_file()
