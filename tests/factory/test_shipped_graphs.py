"""The graphs in configs/data fit the stages that there are."""

import pathlib

from mtnlg.core import config as configs
from mtnlg.factory import graph as graphs


def load(name):
    return configs.run_file(pathlib.Path(f"configs/data/{name}.py"), "get_graph", "", "")


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
    mtnlg = load("mtnlg")
    assert {node.name for node in mtnlg.nodes if node.stage == "tokenize"} == {pathlib.Path(one).name.partition(".")[0] for one in blend}
