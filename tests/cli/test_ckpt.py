"""`mtnlg ckpt` on checkpoints made here."""

import json

import numpy as np
import pytest

from mtnlg import checkpoint
from mtnlg.cli.main import main
from mtnlg.core import config as configs
from mtnlg.core import schema

PARAMS = {"blocks": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "norm": np.ones(3, np.float32)}


def save(directory, step, params, **model):
    config = schema.Config(name="small", model=schema.Model(**model))
    meta = {"step": step, "samples": 4 * step, "tokens": 64 * step, "config": configs.to_nested(config), "tokenizer_sha256": "a1"}
    checkpoints = checkpoint.Checkpoints(directory, keep_last=9)
    checkpoints.save(step, params, {"count": np.full(2, step, np.int32)}, meta)
    checkpoints.wait()


@pytest.fixture
def run(tmp_path):
    """A run's folder with steps 1 and 2, which differ in one number of one array."""
    for step in (1, 2):
        kernel = PARAMS["blocks"]["kernel"].copy()
        kernel[1, 2] += step - 1
        save(tmp_path / "checkpoints", step, PARAMS | {"blocks": {"kernel": kernel}}, num_layers=step)
    return tmp_path


def test_ls(run, capsys):
    (run / "checkpoints" / "1").rename(run / "checkpoints" / "1.corrupt")
    assert main(["ckpt", "ls", str(run)]) == 0
    head, second, aside = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head == ["step", "samples", "tokens", "bytes", "saved"] and second[:3] == ["2", "8", "128"]
    assert aside[0] == "1.corrupt" and aside[-3:] == ["damaged,", "set", "aside"]


def test_verify(run, capsys):
    assert main(["ckpt", "verify", str(run)]) == 0
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["whole", "whole"]
    with (run / "checkpoints" / "1" / "meta.json").open("a") as file:
        file.write(" ")
    assert main(["ckpt", "verify", str(run)]) == 65
    assert capsys.readouterr().out.splitlines()[0].endswith("/1: meta.json has changed")
    assert main(["ckpt", "verify", str(run / "checkpoints" / "2")]) == 0


def test_show(run, capsys):
    assert main(["ckpt", "show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "/2: step 2, 8 samples, 128 tokens\n  name = small\n  model.num_layers = 2\n\nparams: 2 arrays, 36 B" in shown
    assert "blocks/kernel  [2, 3]  float32   24 B" in shown
    assert main(["ckpt", "show", str(run / "checkpoints" / "1"), "--stats"]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("blocks/kernel")]
    assert row[-5:] == ["2.5", "1.71", "0", "5", "0"]


def test_diff(run, capsys):
    assert main(["ckpt", "diff", str(run), str(run)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["ckpt", "diff", str(run / "checkpoints" / "1"), str(run / "checkpoints" / "2")]) == 0
    shown = capsys.readouterr().out
    assert "params: 1 of 2 arrays differ\nblocks/kernel  1 of 6 numbers, up to 0.17 of the largest\n" in shown
    assert [line.split() for line in shown.splitlines()[1:5]] == [
        ["model.num_layers", "1", "2"],
        ["step", "1", "2"],
        ["samples", "4", "8"],
        ["tokens", "64", "128"],
    ]


def test_arrays_of_other_shapes_and_names(run, tmp_path, capsys):
    save(tmp_path / "other", 1, {"blocks": {"kernel": np.ones((3, 2), np.float32)}, "scale": np.ones(3, np.float32)})
    assert main(["ckpt", "diff", str(run / "checkpoints" / "1"), str(tmp_path / "other")]) == 0
    shown = capsys.readouterr().out
    assert "float32[2, 3] and float32[3, 2]" in shown and "norm           only in the first" in shown
    assert "scale          only in the second" in shown


def test_not_a_number_twice_is_no_difference(tmp_path, capsys):
    for name in ("a", "b"):
        save(tmp_path / name, 1, {"norm": np.array([np.nan, 1.0], np.float32)})
    assert main(["ckpt", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert main(["ckpt", "show", str(tmp_path / "a"), "--stats"]) == 0
    assert capsys.readouterr().out.split("deviation")[1].splitlines()[1].split()[-1] == "1"


def test_a_part_that_is_gone(run, capsys):
    """What cannot be read is told in one line."""
    path = run / "checkpoints" / "2"
    for file in sorted((path / "params").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert main(["ckpt", "show", str(path)]) == 65
    assert json.loads((path / "meta.json").read_text())["step"] == 2
    assert "the params cannot be read" in capsys.readouterr().err
