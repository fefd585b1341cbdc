"""`mtnlg config`: what is printed reads back to the same config; and every config that is shipped resolves."""

import importlib.util
import json
import pathlib

import pytest

from mtnlg.cli.main import main
from mtnlg.core import config as configs
from mtnlg.core import schema

ROOT = pathlib.Path(__file__).parent.parent.parent
DEMO = "--config=configs/demo.py"


def sizes_of_sc21() -> list[str]:
    spec = importlib.util.spec_from_file_location("sc21", ROOT / "configs" / "sc21.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.SIZES)


SHIPPED = [
    *sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")),
    *(f"configs/sc21.py:{size}" for size in sizes_of_sc21()),
]


@pytest.fixture
def stdout_of(capsys, monkeypatch):
    """A function: what a command line prints when it succeeds."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        assert main(list(map(str, arguments))) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.mark.parametrize("config", SHIPPED)
def test_a_shipped_config_resolves_and_reads_back(stdout_of, tmp_path, config):
    printed = stdout_of("config", f"--config={config}")
    (tmp_path / "that.json").write_text(printed)
    assert configs.resolve([f"--config={tmp_path / 'that.json'}"]) == configs.resolve([f"--config={config}"])
    assert configs.flatten(json.loads(printed)).keys() == schema.leaves().keys()


def test_the_table_of_sc21_has_ten_sizes():
    assert len(sizes_of_sc21()) == 10


def test_overrides_are_printed_and_read_back(stdout_of, tmp_path):
    overrides = ["--config.data.weights=0.5", "--config.model.d_ff", "100", "--config.init.from=runs/a", "--config.train.num_steps=2e3"]
    printed = stdout_of("config", DEMO, *overrides)
    values = configs.flatten(json.loads(printed))
    assert [values[key] for key in ("data.weights", "model.d_ff", "init.from", "train.num_steps")] == [[0.5], 100, "runs/a", 2000]
    (tmp_path / "that.json").write_text(printed)
    assert stdout_of("config", f"--config={tmp_path / 'that.json'}") == printed


def test_explain(stdout_of):
    meaning = "      feed-forward non-linearity; gelu is the tanh form (one of gelu, gelu_exact, relu, swiglu)\n"
    assert stdout_of("config", "--explain=model.activation") == "--config.model.activation=gelu\n" + meaning
    assert stdout_of("config", DEMO, "--config.seed=7", "--explain=seed").endswith("\n      here: 7\n")


def test_diff(stdout_of):
    assert stdout_of("config", DEMO, "--diff=configs/demo.py") == "no difference\n"
    changed = stdout_of("config", DEMO, "--config.model.num_heads=6", "--config.model.d_ff=7", "--diff=configs/demo.py")
    assert changed == "model.num_heads  6 | 4\nmodel.d_ff       7 | None\n"
    sizes = stdout_of("config", "--config=configs/sc21.py:1t", "--diff=configs/sc21.py:1.7b")
    assert ["model.num_layers", "128", "|", "24"] in [line.split() for line in sizes.splitlines()] and "seed" not in sizes
