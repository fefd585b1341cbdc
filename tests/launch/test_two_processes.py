"""A whole run in two processes of four devices is the run of one process with eight; it stops, resumes and fails as one."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from mtnlg import checkpoint
from mtnlg.core import config as configs
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import run as pretrain
from mtnlg.run import metrics
from mtnlg.train import peak
from mtnlg.train import state as states

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = """
import os
import pathlib

from mtnlg.core import config as configs


def get_config(arg=""):
    process = os.environ.get("MTNLG_PROCESS_ID", "0")
    pathlib.Path(__file__).with_name(f"pid.{process}").write_text(str(os.getpid()))
    config = configs.default()
    config.model.update(num_layers=1, d_model=16, num_heads=2, seq_len=16, vocab_size=300, dropout_hidden=0.1, dropout_attention=0.1)
    config.data.source = (str(pathlib.Path(__file__).with_name("docs.jsonl")),)
    config.data.heldout_fraction = 0.2
    config.train.update(batch_size=8, num_steps=4)
    config.optimizer.update(learning_rate=0.1, eps=0.1)  # a small eps would make the last bits of small gradients large
    config.checkpoint.update(every_steps=2, keep_last=9)
    config.eval.max_tokens = 64
    config.sample.update(prompts=("the quick",), max_new_tokens=4)
    config.log.update(every_steps=1, tensorboard=False)
    config.mesh.update(data=4, tensor=2, sequence_parallel=True, zero=2)
    if arg == "differs":
        config.train.num_steps += int(process)
    if arg == "stages":
        config.model.update(num_layers=2, dropout_hidden=0.0, dropout_attention=0.0)
        config.train.update(microbatch_size=2, num_steps=2)
        config.mesh.update(pipe=2, data=1, tensor=1, sequence_parallel=False)
        config.sample.prompts = ()
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config and forty small documents."""
    folder = tmp_path_factory.mktemp("source")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "seven", "wizards", "with", "quartz"]
    random = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(random.choice(words, 60))}) for _ in range(40)]
    (folder / "docs.jsonl").write_text("\n".join(lines))
    (folder / "tiny.py").write_text(CONFIG)
    return folder


@pytest.fixture(autouse=True)
def no_gemm_timing(monkeypatch):
    monkeypatch.setattr(peak, "best_gemm_flops_per_sec", lambda dtype: 1e11)


def launch(folder, workdir, *overrides, arg="", num_processes=2, num_devices=8) -> subprocess.Popen:
    """A run on so many devices, dealt out to the processes."""
    train = ["train", f"--config={folder / 'tiny.py'}{arg}", f"--workdir={workdir}", f"--config.data.directory={folder / 'tokens'}"]
    command = [sys.executable, "-m", "mtnlg", "launch", "local", f"--processes={num_processes}"]
    command += [f"--devices={num_devices // num_processes}", "--", *train, *overrides]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # whole lines in one piece
    launched = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    LAUNCHED.append(launched)
    return launched


LAUNCHED: list[subprocess.Popen] = []


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind(folder):
    """A test that fails ends its job all the same, with the processes that it started."""
    yield
    for launched in LAUNCHED:
        if launched.poll() is None:
            launched.kill()
            for pid in folder.glob("pid.*"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid.read_text()), signal.SIGKILL)


def resolve(folder, *overrides, arg=""):
    return configs.resolve([f"--config={folder / 'tiny.py'}{arg}", f"--config.data.directory={folder / 'tokens'}", *overrides])


def state_of(config, workdir, step) -> dict:
    """Every array of a checkpoint, restored onto the devices of this process."""
    abstract, step_dir = states.abstract(config, meshes.make(config.mesh)), pathlib.Path(workdir) / "checkpoints" / str(step)
    checkpoint.require_good(step_dir)
    parts = {part: checkpoint.load(step_dir, part, getattr(abstract, part), config) for part in ("params", "optimizer")}
    return {name: np.asarray(leaf) for name, leaf in checkpoint.by_path(parts).items()}


def require_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5 * np.abs(b[name]).max(), err_msg=name)


def losses(workdir) -> np.ndarray:
    return np.array([[line["step"], line["loss"]] for line in metrics.read(f"{workdir}/metrics.jsonl") if "loss" in line])


@pytest.fixture(scope="module")
def run_of_two(folder, tmp_path_factory):
    """(its folder, what was printed)."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    launched = launch(folder, workdir)
    out, err = launched.communicate()
    assert launched.returncode == 0, err
    return workdir, out


def test_two_processes_are_one(run_of_two, folder, tmp_path, capfd):
    config = resolve(folder)
    pretrain.pretrain(config, str(tmp_path), {})
    np.testing.assert_allclose(losses(run_of_two[0]), losses(tmp_path), rtol=1e-6)
    for step in (2, 4):
        require_close(state_of(config, run_of_two[0], step), state_of(config, tmp_path, step))
    assert metrics.read(run_of_two[0] / "samples.jsonl") == metrics.read(tmp_path / "samples.jsonl")


def test_two_processes_are_one_with_a_stage_in_each(folder, tmp_path, capfd):
    """All that passes between the stages, the tied embedding's gradient too, passes between processes."""
    launched = launch(folder, tmp_path / "two", arg=":stages", num_devices=2)
    _, err = launched.communicate()
    assert launched.returncode == 0, err
    config = resolve(folder, arg=":stages")
    pretrain.pretrain(config, str(tmp_path / "one"), {})
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)
    require_close(*(state_of(config, tmp_path / name, 2) for name in ("two", "one")))


def test_the_first_process_alone_writes_and_speaks(run_of_two):
    workdir, out = run_of_two
    gloo = re.compile(r".*Gloo.*|.*peer ranks.*|\[1\] \d*")  # which writes its lines in pieces, a number among them
    told = [line for line in out.splitlines() if line.startswith("[1] ") and not gloo.fullmatch(line)]
    assert len(told) == 1 and re.fullmatch(r"\[1\] process 1 of 2 on \S+: 4 of 8 cpu devices", told[0])
    assert out.count("step 3/4  loss") == 1 and out.count("finished at step 4") == 1
    assert [line[0] for line in losses(workdir)] == [1, 2, 3, 4]
    files = "checkpoints config.json curves.png environment.json goodput.jsonl lock metrics.jsonl overrides.json samples.jsonl tokenizer"
    assert sorted(path.name for path in workdir.iterdir()) == files.split()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_one_process_goes_on_where_two_were(run_of_two, folder, tmp_path):
    shutil.copytree(run_of_two[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    config = resolve(folder)
    pretrain.pretrain(config, str(tmp_path / "run"), {})
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(run_of_two[0]), rtol=1e-6)
    require_close(state_of(config, tmp_path / "run", 4), state_of(config, run_of_two[0], 4))


def test_processes_with_different_configs_do_not_start(folder, tmp_path):
    launched = launch(folder, tmp_path / "run", arg=":differs")
    _, err = launched.communicate(timeout=60)
    assert launched.returncode == 2
    line = "mtnlg: error: the processes of the job differ: train.num_steps is 5 in process 1 and 4 in process 0 (2 processes). Try: "
    assert any(text.startswith((line, f"[1] {line}")) for text in err.splitlines())  # the launcher may end the other before it speaks
    assert re.search(r"^mtnlg: process [01] of 2 ended with exit code 2; the others were ended$", err, re.MULTILINE)
    assert not (tmp_path / "run").exists()


def read_until(launched: subprocess.Popen, wanted: str) -> None:
    for line in launched.stdout:
        if wanted in line:
            return
    pytest.fail(launched.stderr.read())


@pytest.mark.slow
def test_four_processes_are_one(run_of_two, folder, tmp_path):
    """The same samples and the same dropout masks, however the devices are dealt out."""
    launched = launch(folder, tmp_path / "run", num_processes=4)
    assert launched.communicate()[1] is not None and launched.returncode == 0
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(run_of_two[0]), rtol=1e-6)
    require_close(*(state_of(resolve(folder), run, 4) for run in (tmp_path / "run", run_of_two[0])))


@pytest.mark.slow
def test_a_signal_to_one_stops_both_after_the_same_step_and_two_go_on_bit_for_bit(folder, tmp_path):
    """Only process 1 gets the signal. Resumed in two processes, the run is the one that was never stopped."""
    config = resolve(folder, "--config.train.num_steps=150", "--config.checkpoint.every_steps=1000")
    overrides = ("--config.train.num_steps=150", "--config.checkpoint.every_steps=1000")
    whole = launch(folder, tmp_path / "whole", *overrides)
    assert whole.communicate()[1] is not None and whole.returncode == 0
    stopped = launch(folder, tmp_path / "run", *overrides)
    read_until(stopped, "step 3/150")
    os.kill(int((folder / "pid.1").read_text()), signal.SIGTERM)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 0, err
    assert "stopped, to be continued at step " in out
    (step,) = checkpoint.whole_steps(tmp_path / "run" / "checkpoints")
    assert 3 < step < 150
    resumed = launch(folder, tmp_path / "run", *overrides)
    assert f"goes on at step {step}" in resumed.communicate()[0]
    a, b = (state_of(config, tmp_path / name, 150) for name in ("run", "whole"))
    assert all((a[name] == b[name]).all() for name in a)
    assert (losses(tmp_path / "run") == losses(tmp_path / "whole")).all()


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_killed_process_ends_the_run_in_seconds(folder, tmp_path, process):
    launched = launch(folder, tmp_path / "run", "--config.train.num_steps=100000")
    read_until(launched, "step 3/100000")
    os.kill(int((folder / f"pid.{process}").read_text()), signal.SIGKILL)
    _, err = launched.communicate(timeout=20)
    assert launched.returncode == 69
    line = f"mtnlg: error: process {process} of 2 was killed by SIGKILL; the others were ended. Try: the same command; "
    assert err.splitlines()[-1].startswith(line)


@pytest.mark.slow
def test_a_full_disk_for_one_is_tried_again_by_both(run_of_two, folder, tmp_path, monkeypatch):
    """In process 1 before anything is written, then in process 0 behind it; on a fast disk too, which is empty in the end."""
    faults = [f"full@phase:save,step:1,process:1,once:{tmp_path / 'a'}", f"full@phase:publish,step:2,process:0,once:{tmp_path / 'b'}"]
    monkeypatch.setenv("MTNLG_FAULT", ";".join(faults))
    fast = (f"--config.checkpoint.fast_directory={tmp_path / 'fast'}", "--config.checkpoint.fast_every_steps=1")
    launched = launch(folder, tmp_path / "run", *fast)
    out, err = launched.communicate(timeout=300)
    assert launched.returncode == 0, err
    told = [line for line in out.splitlines() if "a save has failed, and is tried once more with step" in line]
    assert len(told) == 2 and all(any(path in line for line in told) for path in ("fast/1.saving", "checkpoints/2.saving"))
    assert [path.name for path in (tmp_path / "fast").iterdir()] == ["fast_checkpoints.txt"]
    require_close(*(state_of(resolve(folder), run, 4) for run in (tmp_path / "run", run_of_two[0])))


@pytest.mark.slow
@pytest.mark.parametrize("is_fast", [False, True])
def test_processes_that_see_different_folders_are_told(folder, tmp_path, is_fast):
    """Each on a file system of its own, as hosts without a shared one: here the same name leads elsewhere."""
    fast = ["--config.checkpoint.fast_directory=run", "--config.checkpoint.fast_every_steps=1"]
    arguments = [f"--workdir={tmp_path / 'shared'}", *fast] if is_fast else ["--workdir=run"]
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    script = f"""
import os, sys
os.chdir(os.path.join({str(tmp_path)!r}, os.environ["MTNLG_PROCESS_ID"]))
from mtnlg.cli.main import main
sys.exit(main(["train", "--config={folder / "tiny.py"}", *{arguments!r}]))
"""
    launcher = "import sys; from mtnlg.launch import local; sys.exit(local.run([sys.executable, '-c', sys.argv[1]], 2, 4))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", launcher, script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert ("the run that run belongs to is none" if is_fast else "the owner of run is nobody") + " in process 1 and" in done.stderr
    assert (
        f"Try: {'--config.checkpoint.fast_directory' if is_fast else 'one --workdir'} on a file system that every process sees"
        in done.stderr
    )


def test_as_many_devices_are_there():
    """The comparison with one process above stands on eight of them."""
    assert len(jax.devices()) == 16
