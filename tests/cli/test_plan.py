"""`mtnlg plan`: both tables for any config, the check on virtual devices, and what it refuses."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from mtnlg.cli.main import main
from mtnlg.parallel import schedule_file, specs
from mtnlg.plan import collectives

ROOT = pathlib.Path(__file__).parent.parent.parent
LARGEST = ("--config=configs/mtnlg_530b.py", "--explain-sharding")
PIPELINED = ("--config=configs/sc21.py:76b", "--config.train.batch_size=512")
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
    assert " ".join(kernel[1:]) == "[105, 20480, 81920] [pipe, data, tensor] [pipe, -, tensor] 300.0 MiB 2.3 GiB 600.0 MiB"
    assert any(line.split() == ["parameters", "923.6", "MiB", "(968,417,280", "bytes)"] for line in lines)
    assert "A stage has 3 of the 105 layers, and room for 3." in lines
    assert lines[-2] == "A layer, each microbatch: forward 2 all_reduce, backward 4 all_reduce; a device sends 840.0 MiB."
    assert lines[-1].startswith("A step: 8,090 collectives;")


def test_both_spellings_and_one_device(capsys):
    assert plan(capsys, "--config=configs/gpt2_124m.py", "--explain_sharding")[1][-1].startswith("No collectives in a step of ")


def test_in_a_process_of_its_own_it_needs_no_devices():
    """JAX sees no accelerator even where there is one."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run([sys.executable, "-m", "mtnlg", "plan", *LARGEST], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("devices", "stages"), [(4, ()), (8, ("--config.mesh.pipe=2", "--config.sample.prompts=()"))])
def test_the_check_compiles_for_virtual_devices_and_agrees(devices, stages):
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run([sys.executable, "-m", "mtnlg", "plan", *SMALL, *stages], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout.partition(f"\n\nChecked on {devices} virtual CPU devices. ")[2]
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
        (LARGEST[:1], "plan is not told what to show (command line). Try: --explain-sharding, --draw=FILE.svg, --compare"),
        ((*LARGEST, "--check"), "a mesh of 2240 devices is too large for the virtual ones, of which there are 16 at most (--check)"),
        (("--explain-sharding",), "no config is named"),
        ((*LARGEST[:1], "--draw=a.svg", "--check"), "--check compares with what --explain-sharding predicts (command line)"),
        ((*LARGEST[:1], "--draw=a.png"), "--draw=a.png does not end in .svg, and nothing else is written (command line). Try: --draw="),
        ((*LARGEST[:1], "--table=a.svg"), "--table=a.svg does not end in .csv"),
        (("--config=configs/demo.py", "--compare"), "mesh.pipe=1 has no stages, so there is no schedule to show (--config.mesh.pipe)"),
        (("--config=configs/demo.py", "--draw=a.svg"), "Try: --config.mesh.pipe=4\n"),
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


def test_a_schedule_is_drawn(capsys, tmp_path):
    path = tmp_path / "a.svg"
    code, lines, err = plan(capsys, *LARGEST[:1], f"--draw={path}")
    assert (code, err) == (0, "") and lines[-1] == f"written: {path}"
    assert lines[0].startswith("mtnlg_530b, 1f1b: 1028 ticks, makespan 3,231.5, ideal 3,027.5 (the work of the busiest stage), ")
    assert sum(line.startswith("stage ") for line in lines) == 2 * 35
    ElementTree.parse(path)


def test_all_schedules_are_compared_and_drawn(capsys, tmp_path):
    path = tmp_path / "a.svg"
    code, lines, err = plan(capsys, *PIPELINED, "--compare", f"--draw={path}")
    assert (code, err) == (0, "") and lines[-1] == f"written: {path}"
    assert "   schedule     chunks  ticks  makespan" in lines[2]
    panels = [node for node in ElementTree.parse(path).iter() if node.get("class") == "panel"]
    assert len(panels) == 5


def test_a_table_given_back_is_the_same_table(capsys, tmp_path):
    paths = [tmp_path / name for name in ("a.csv", "b.csv")]
    for name, path in zip(("zb_v", paths[0]), paths, strict=True):
        code, lines, err = plan(capsys, *PIPELINED, f"--config.pipeline.schedule={name}", f"--table={path}")
        assert (code, lines, err) == (0, [f"written: {path}"], "")
    assert paths[0].read_text() == paths[1].read_text() and len(paths[0].read_text().splitlines()) == 1 + 4 * 8 * 2 * 4


@pytest.mark.parametrize(("option", "name"), [("--draw", "a.svg"), ("--table", "a.csv")])
def test_what_cannot_be_written(capsys, tmp_path, option, name):
    path = tmp_path / "file" / name
    path.parent.touch()
    code, lines, err = plan(capsys, *PIPELINED, f"{option}={path}")
    assert (code, lines) == (73, [])
    assert err == f"mtnlg: error: cannot write: Not a directory ({path}). Try: another {option}, or its owner's permission\n"


def test_a_bad_table_is_told(capsys, tmp_path):
    code, lines, err = plan(capsys, *PIPELINED, "--config.pipeline.schedule=none.csv", "--compare")
    assert (code, lines) == (66, []) and "cannot read the schedule" in err


@pytest.mark.parametrize("option", ["--draw=a.svg", "--compare", "--table=b.csv", "--explain-sharding"])
def test_a_table_under_a_ramp_is_refused_as_training_does(capsys, tmp_path, option):
    """The table serves the full batch, and not the ones before it."""
    table = tmp_path / "a.csv"
    plan(capsys, *PIPELINED, f"--table={table}")
    ramp = [f"--config.train.ramp_{key}" for key in ("start_size=256", "increment=64", "samples=1024")]
    refused = (*PIPELINED, *ramp, f"--config.pipeline.schedule={table}")
    code, lines, err = plan(capsys, *refused, option)
    assert (code, lines) == (2, []) and f"{table} is a table for 8 microbatches, and there are 4 in a step of the run" in err
    assert main(["train", *refused, "--dry_run"]) == code and capsys.readouterr().err == err


def test_the_help_names_the_columns(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    assert ",".join(schedule_file.COLUMNS) in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readmes_show_what_is_printed(capsys, page):
    section = re.search(r"```bash\n(python -m mtnlg plan .*?)\n```.*?```text\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    command = section[1].replace("\\\n", " ").splitlines()[0]
    _, lines, _ = plan(capsys, *shlex.split(command)[4:])
    assert [line for line in section[2].splitlines() if line not in lines] == []


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_readmes_show_the_schedules_that_are_drawn(capsys, tmp_path, page):
    section = re.search(
        r"```bash\n(python -m mtnlg plan [^\n]* --compare [^\n]*)\n.*?```text\n(.*?)```", (ROOT / page).read_text(), re.DOTALL
    )
    *words, draw = shlex.split(section[1])[4:]
    _, lines, _ = plan(capsys, *words, f"--draw={tmp_path}/a.svg")
    assert section[2] and [line for line in section[2].splitlines() if line not in lines] == []
    assert (tmp_path / "a.svg").read_text() == (ROOT / draw.removeprefix("--draw=")).read_text()
