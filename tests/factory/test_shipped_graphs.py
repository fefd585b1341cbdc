"""The graphs in configs/data fit the stages that there are."""

import pathlib

import pytest

from mtnlg.core import config as configs
from mtnlg.factory import graph as graphs
from mtnlg.factory import registry


def load(name):
    wanted = configs.run_file(pathlib.Path(f"configs/data/{name}.py"), "get_graph", "", "")
    if missing := {node.stage for node in wanted.nodes} - registry.STAGES.keys():
        pytest.skip(f"without the stages {', '.join(sorted(missing))}")
    return wanted


def test_the_demo():
    demo = load("demo")
    assert graphs.problems(demo) == []
    assert [node.name for node in demo.ordered()] == ["library", "clean", "dedup", "tokenizer", "tokens"]


def test_mtnlg_lacks_nothing_but_its_texts(monkeypatch, tmp_path):
    monkeypatch.setenv("MTNLG_CORPORA", str(tmp_path))
    mtnlg = load("mtnlg")
    for path in {one for node in mtnlg.nodes for one in node.inputs if one.startswith(str(tmp_path))}:
        pathlib.Path(path).mkdir()
    assert [problem for problem in graphs.problems(mtnlg) if str(tmp_path) not in problem] == []
    assert len(mtnlg.nodes) == 15 + 15 + 1 + 6 + 2 + 15 + 15
    (dedup,) = [node for node in mtnlg.nodes if node.name == "dedup"]
    assert len(mtnlg.before(dedup)) == 15


def test_mtnlg_makes_the_sources_of_the_blend(monkeypatch):
    blend = configs.resolve(["--config=configs/mtnlg_530b.py"]).data.source
    mtnlg = configs.run_file(pathlib.Path("configs/data/mtnlg.py"), "get_graph", "", "")
    assert {node.name for node in mtnlg.nodes if node.stage == "tokenize"} == {pathlib.Path(one).name.partition(".")[0] for one in blend}
