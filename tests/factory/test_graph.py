"""A graph is checked before anything runs, and all that is wrong with it is told at once."""

import graphlib
import itertools

import pytest

from mtnlg.core.errors import ConfigError
from mtnlg.factory import graph as graphs
from mtnlg.factory.graph import Graph

pytestmark = pytest.mark.usefixtures("fake_stages")


@pytest.fixture
def config(tmp_path):
    """A function: writes the body of get_graph() as a config file and returns its path."""

    def write(*lines) -> str:
        body = "\n".join(f"    {line}" for line in ("graph = Graph()", *lines, "return graph"))
        (tmp_path / "graph.py").write_text(f"from mtnlg.factory.graph import Graph\n\n\ndef get_graph():\n{body}\n")
        return str(tmp_path / "graph.py")

    return write


def test_nodes_run_behind_what_they_read():
    graph = Graph()
    graph.add("c", stage="keep", inputs=["b", "a/part"])
    graph.add("b", stage="keep", inputs=["a", "/elsewhere/a"])
    graph.add("a", stage="keep", inputs="./a")
    assert [node.name for node in graph.ordered()] == ["a", "b", "c"]
    assert graph.before(graph.nodes[0]) == ["b", "a"] and graph.before(graph.nodes[1]) == ["a"] and graph.before(graph.nodes[2]) == []
    assert graph.behind(["b"]) == {"b", "c"} and graph.behind(["a"]) == {"a", "b", "c"} and graph.behind([]) == set()


def test_options_that_are_nodes_come_before(tmp_path):
    graph = Graph()
    graph.add("tokens", stage="keep", inputs=["a"], without="@model/file", min_chars=3)
    graph.add("model", stage="keep", inputs=["./x"], other=("@a", "y"))
    graph.add("a", stage="keep", inputs=["./x"], with_=1)
    tokens, model, a = graph.nodes
    assert [node.name for node in graph.ordered()] == ["a", "model", "tokens"]
    assert graph.options_of(tokens, tmp_path) == {"without": f"{tmp_path}/model/file", "min_chars": 3}
    assert graph.options_of(model, tmp_path) == {"other": (f"{tmp_path}/a", "y")} and a.options == {"with": 1}
    assert graph.inputs_of(tokens, tmp_path) == (f"{tmp_path}/a",) and graph.inputs_of(a, tmp_path) == ("./x",)


def test_everything_wrong_is_told_at_once(config, tmp_path):
    path = config(
        "graph.add('a', stage='keeep', inputs=['corpsu'])",
        "graph.add('corpus', stage='keep', inputs=['nothing.jsonl'], min_charz=3)",
        "graph.add('corpus', stage='keep', inputs=[], min_chars='many')",
        "graph.add('bad/name', stage='keep', inputs=['a'], mode='wild')",
        "graph.add('x', stage='keep', inputs=['y'], min_chars=-1)",
        "graph.add('y', stage='keep', inputs=['x'], without='@nobody')",
    )
    with pytest.raises(ConfigError) as caught:
        graphs.load(path, ["z.min_chars=3", "a.min_chars", "x"])
    told = [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:-1]]
    expected = [
        "--set z.min_chars=3: there is no node 'z'",
        "--set a.min_chars is no setting. Try: --set NODE.option=value",
        "--set x is no setting",
        "two nodes are called 'corpus'",
        "node a: there is no stage 'keeep' (python -m mtnlg data). Try: keep",
        "node a: there is neither a node nor a file or folder 'corpsu'. Try: corpus",
        "node corpus: stage keep has no option 'min_charz' (python -m mtnlg data). Try: min_chars",
        "node corpus: there is neither a node nor a file or folder 'nothing.jsonl'. Try: --set corpus.inputs=PATH,...",
        "node corpus has no inputs",
        "node corpus: min_chars='many' is not a whole number (stage keep). Try: min_chars=0",
        "'bad/name' is no name of a node",
        "node bad/name: mode='wild' is not known (stage keep). Try: one of plain, fancy",
        "node x: min_chars=-1 is below 0 (stage keep). Try: min_chars=0",
        "node y: there is no node 'nobody'",
        "a circle: ",
    ]
    assert len(told) == len(expected)
    for line, begins in zip(told, expected, strict=True):
        assert line.startswith(begins)
    assert told[-1] in ("a circle: x reads y reads x", "a circle: y reads x reads y")
    assert not any(tmp_path.glob("*/"))


def test_a_circle_is_told_in_the_direction_of_reading():
    graph = Graph()
    for name, read in (("a", "b"), ("b", "c"), ("c", "a")):
        graph.add(name, stage="keep", inputs=[read])
    with pytest.raises(graphlib.CycleError):
        graph.ordered()
    (told,) = [line for line in graphs.problems(graph) if "circle" in line]
    links = told.removeprefix("a circle: ").split(" reads ")
    assert all(["a", "b", "c"].index(b) == (["a", "b", "c"].index(a) + 1) % 3 for a, b in itertools.pairwise(links))


def test_settings(config, corpus):
    path = config("graph.add('a', stage='keep', inputs=['nowhere'], min_chars=3)")
    graph = graphs.load(path, [f"a.inputs={corpus([])},{corpus([], 'b.jsonl')}", "a.min_chars=1e3", "a.without=x=y"])
    (node,) = graph.nodes
    assert node.options == {"min_chars": "1e3", "without": "x=y"} and len(node.inputs) == 2
    assert graphs.registry.make(node.stage, node.options).min_chars == 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_graph():\n    return 1 / 0\n", r"ZeroDivisionError.*graph\.py:2"),
        ("def get_graph():\n    return 3\n", "gave 3, not a graph"),
        ("x = 1\n", "get_graph"),
        ("def get_graph(:\n", "SyntaxError"),
    ],
)
def test_a_file_that_gives_no_graph(tmp_path, text, said):
    (tmp_path / "graph.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        graphs.load(str(tmp_path / "graph.py"))
    with pytest.raises(ConfigError, match="no such file"):
        graphs.load(str(tmp_path / "none.py"))
