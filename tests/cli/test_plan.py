"""`mtnlg plan`: both tables for any config, the check on virtual devices, and what it refuses."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from mtnlg.cli.main import main
from mtnlg.parallel import specs
from mtnlg.plan import collectives

ROOT = pathlib.Path(__file__).parent.parent.parent
LARGEST = ("--config=configs/mtnlg_530b.py", "--explain-sharding")
SMALL = (
    "--config=configs/demo.py", "--explain-sharding", "--check", "--config.train.unroll_layers=false", "--config.mesh.tensor=2",
    "--config.model.num_layers=2", "--config.mesh.data=2", "--config.train.microbatch_size=2", "--config.model.seq_len=128",
)  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_projects_folder(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def plan(capsys, *arguments) -> tuple[int, list[str], str]:
    code = main(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_the_largest_model(capsys):
    code, lines, err = plan(capsys, *LARGEST)
    assert (code, err) == (0, "")
    assert lines[0] == "mtnlg_530b: pipe 35, data 8, tensor 8; zero 1, sequence_parallel False. All bytes are of one device."
    (kernel,) = [line.split() for line in lines if line.startswith("blocks/mlp/up/kernel")]
    assert " ".join(kernel[1:]) == "[105, 20480, 81920] [-, data, tensor] [-, -, tensor] 300.0 MiB 2.3 GiB 600.0 MiB"
    assert any(line.split() == ["parameters", "984.3", "MiB", "(1,032,079,360", "bytes)"] for line in lines)
    assert any(line.startswith("mesh.pipe=35: 3 of 105 layers are counted; pipeline parallelism is not there yet") for line in lines)
    assert lines[-2] == "A layer, each microbatch: forward 2 all_reduce, backward 3 all_reduce; a device sends 700.0 MiB."
    assert lines[-1].startswith("A step: 5,068 collectives;")


def test_both_spellings_and_one_device(capsys):
    assert plan(capsys, "--config=configs/gpt2_124m.py", "--explain_sharding")[1][-1].startswith("No collectives in a step of ")


def test_in_a_process_of_its_own_it_needs_no_devices():
    """JAX sees no accelerator even where there is one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run([sys.executable, "-m", "mtnlg", "plan", *LARGEST], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_check_compiles_for_virtual_devices_and_agrees():
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run([sys.executable, "-m", "mtnlg", "plan", *SMALL], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout.partition("\n\nChecked on 4 virtual CPU devices. ")[2]
    assert text.splitlines()[1] == "exactly those above."
    assert "added by XLA outside shard_map" in text


def test_a_prediction_that_is_wrong_is_told(capsys, monkeypatch):
    rows = collectives.predict
    monkeypatch.setattr(collectives, "predict", lambda config: [row for row in rows(config) if row.part != "microbatch"])
    code, lines, _ = plan(capsys, *SMALL)
    assert code == 1 and "but not those above:" in lines
    assert "  head, into the rows of the vocabulary, backward: all_reduce of float32 over tensor, 196,608 bytes: 2, not 0" in lines


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (LARGEST[:1], "mtnlg plan can explain the sharding so far, and nothing else (command line). Try: --explain-sharding"),
        ((*LARGEST, "--check"), "a mesh of 2240 devices is too large for the virtual ones, of which there are 16 at most (--check)"),
        ((*LARGEST, "--config.mesh.pipe=36"), "  - model.num_layers=105 does not divide by mesh.pipe=36\n"),
        (("--explain-sharding",), "no config is named"),
        ((*LARGEST, "--chek"), "unknown argument '--chek'"),
    ],
)  # fmt: skip
def test_what_is_refused(capsys, arguments, expected):
    code, lines, err = plan(capsys, *arguments)
    assert (code, lines) == (2, []) and expected in err


def test_a_wrong_table_ends_with_its_list(capsys, monkeypatch):
    monkeypatch.setattr(specs, "STORAGE", specs.COMPUTE)
    code, lines, err = plan(capsys, *LARGEST)
    assert (code, lines) == (2, []) and err.count("leaves out data: all 8 devices along it would hold the same\n") == 7
    assert err.splitlines()[-1].startswith("  (mtnlg/parallel/specs.py). Try: ")


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readmes_show_what_is_printed(capsys, page):
    section = re.search(r"```bash\n(python -m mtnlg plan .*?)\n```.*?```text\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    command = section[1].replace("\\\n", " ").splitlines()[0]
    _, lines, _ = plan(capsys, *shlex.split(command)[4:])
    assert [line for line in section[2].splitlines() if line not in lines] == []
