"""`mtnlg data` as it is typed: a stage, a graph, and what goes wrong."""

import json
import pathlib
import sys

import pytest

from mtnlg.cli.main import main
from mtnlg.factory import registry

sys.path.append(str(pathlib.Path(__file__).parent.parent / "factory"))

import fakes

GRAPH = """from mtnlg.factory.graph import Graph

def get_graph():
    graph = Graph()
{}    return graph
"""


@pytest.fixture(autouse=True)
def fake_stages(monkeypatch):
    monkeypatch.setattr(registry, "STAGES", dict(registry.STAGES))
    monkeypatch.setitem(sys.modules, "mtnlg.factory.fakes", fakes)
    fakes.register()


@pytest.fixture
def texts(tmp_path):
    documents = [{"id": str(n), "text": "a text <b> " * n} for n in range(1, 20)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n{\n")
    return tmp_path / "texts.jsonl"


def test_a_stage_tells_what_it_did_and_writes_a_page(texts, tmp_path, capsys):
    arguments = [f"--input={texts}", f"--output={tmp_path / 'kept'}", "--workers=1", "--min_chars=50", f"--report={tmp_path / 'page.html'}"]
    assert main(["data", "keep", *arguments]) == 0
    said = capsys.readouterr().out
    assert "19 read              15 written    78.9%" in said
    assert "dropped                  4: too short 4" in said and "unreadable               1: not JSON 1  (" in said
    shown = (tmp_path / "page.html").read_text()
    assert "too short" in shown and "texts:20: not JSON" in shown and "a text &lt;b&gt;" in shown and "<b> " not in shown


def test_a_graph(texts, tmp_path, capsys):
    config = tmp_path / "small.py"
    nodes = [("words", "words", "kept"), ("kept", "keep", texts)]
    lines = [f"    graph.add('{name}', stage='{stage}', inputs=['{read}'])\n" for name, stage, read in nodes]
    config.write_text(GRAPH.format("".join(lines)))
    arguments = ["data", "build", f"--config={config}", f"--output={tmp_path / 'out'}", "--workers=1"]
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"kept: keep of {texts}: to be made", "words: words of kept: to be made"]
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--set", "kept.min_chars=50"]) == 0
    assert "report: " in capsys.readouterr().out
    assert "<title>small</title>" in (tmp_path / "out" / "report.html").read_text()
    assert main([*arguments, "--set", "kept.min_chars=60"]) == 2
    assert "kept: min_chars 50 there, 60 now" in (refused := capsys.readouterr().err)
    assert main([*arguments, "--set", "kept.min_chars=60", "--dry-run"]) == 2 and capsys.readouterr().err == refused
    assert main([*arguments, "--set", "kept.min_chars=60", "--dry-run", "--redo=kept"]) == 0
    assert ": made anew (min_chars 50 there, 60 now)" in capsys.readouterr().out
    assert main([*arguments, "--set", "kept.min_chars=60", "--redo=kept"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kep"], "there is no stage or command 'kep' (python -m mtnlg data). Try: keep"),
        (["keep", "--input=x", "--output=y", "--min_chars=few"], "min_chars='few' is not a whole number"),
        (["keep", "--input=x", "--output=y", "--workers=0"], "'0' is no number of processes"),
        (["keep", "--input=x", "--output=y", "--min_chars=-1"], "min_chars=-1 is below 0"),
        (["keep", "--input=x", "--output=y", "--min-char=5"], "unknown argument '--min-char=5' (command line). Try: --min_chars"),
        (["keep", "--input=x", "--input=z", "--output=y"], "--input is given twice"),
        (["keep", "--input=x", "z", "--output=y"], "unknown argument 'z' (command line). Try: commas between several"),
        (["keep", "--input=", "--output=y"], "nothing is named (--input)"),
        (["build", "--config=configs/demo.py", "--output=y"], "there is no get_graph() in this file"),
        (["build", "--output=y"], "--config"),
    ],
)
def test_usage(arguments, said, capsys):
    assert main(["data", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_help_names_stages_and_commands(capsys):
    assert main(["data"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in [*registry.STAGES, "build", "blend"])
    for command in ("keep", "build", "blend"):
        with pytest.raises(SystemExit, match="0"):
            main(["data", command, "--help"])
