"""A graph of stages, as a config file writes it down.

    def get_graph():
        graph = Graph()
        graph.add("clean", stage="clean", inputs=["texts.jsonl"], min_chars=256)
        graph.add("dedup", stage="dedup", inputs=["clean"])
        return graph

A node is named as its folder will be. An input is a node, or something inside one (`clean/part-00000.jsonl.zst`), or else a path; a path
that begins with the name of a node is written with `./`. An option that is a path may be a node too, as `@node`.
"""

import difflib
import graphlib
import pathlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mtnlg.core import config as configs
from mtnlg.core.errors import ConfigError, MtnlgError
from mtnlg.corpus import sources
from mtnlg.factory import registry
from mtnlg.factory.raw import hub

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class Node:
    """inputs: nodes and paths, in order. options: of the stage, where they are not its defaults."""

    name: str
    stage: str
    inputs: tuple[str, ...]
    options: dict


class Graph:
    """Nodes in the order in which they were added, which need not be the one in which they run."""

    def __init__(self, nodes: Iterable[Node] = ()):
        self.nodes = list(nodes)

    def add(self, name: str, *, stage: str, inputs: Iterable[str], **options) -> None:
        """A stage that reads `inputs` in this order, and writes the folder `name`. Nothing is checked before the graph is whole.

        An option whose name is a word of Python has an underscore behind it (`with_`).
        """
        read = (inputs,) if isinstance(inputs, str) else tuple(map(str, inputs))
        self.nodes.append(Node(name, stage, read, {option.rstrip("_"): value for option, value in options.items()}))

    def node_of(self, input: str) -> str | None:
        """The name of the node that an input is, or lies in."""
        first = input.partition("/")[0]
        return first if any(node.name == first for node in self.nodes) else None

    def inputs_of(self, node: Node, output: pathlib.Path) -> tuple[str, ...]:
        """The paths that a node reads, where the graph is built in `output`."""
        return tuple(str(output / one) if self.node_of(one) else one for one in node.inputs)

    def options_of(self, node: Node, output: pathlib.Path) -> dict:
        """The options of a node, with paths in place of nodes."""

        def path_of(value):
            return str(output / value[1:]) if _is_node(value) else value

        return {
            key: tuple(map(path_of, value)) if isinstance(value, list | tuple) else path_of(value) for key, value in node.options.items()
        }

    def before(self, node: Node) -> list[str]:
        """The nodes that this one reads, by inputs and options."""
        named = [self.node_of(one) for one in node.inputs] + [self.node_of(one[1:]) for one in _references(node)]
        return list(dict.fromkeys(filter(None, named)))

    def behind(self, names: Iterable[str]) -> set[str]:
        """These nodes and all that are made of them."""
        found = set(names)
        for node in self.ordered():
            if found.intersection(self.before(node)):
                found.add(node.name)
        return found

    def ordered(self) -> list[Node]:
        """Every node behind those that it reads. Raises graphlib.CycleError."""
        by_name = {node.name: node for node in self.nodes}
        return [by_name[name] for name in graphlib.TopologicalSorter({node.name: self.before(node) for node in self.nodes}).static_order()]


def _is_node(value) -> bool:
    return isinstance(value, str) and value.startswith("@")


def _references(node: Node) -> list[str]:
    """The nodes in options, with their @."""
    values = [one for value in node.options.values() for one in (value if isinstance(value, list | tuple) else [value])]
    return list(filter(_is_node, values))


def load(path: str, settings: Iterable[str] = ()) -> Graph:
    """The graph that get_graph() of a config file gives, with `settings` (NODE.option=value, NODE.inputs=PATH,...) and checked.

    Raises MissingInput and ConfigError; the latter with a line for everything that is wrong with it.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ConfigError(f"--config={path}: there is no such file", path, "a path that exists, as configs/data/demo.py")
    graph = configs.run_file(file, "get_graph", "", "graph.add(NAME, stage=STAGE, inputs=[...], option=value)")
    if not isinstance(graph, Graph) or not graph.nodes:
        raise ConfigError(f"get_graph() gave {graph!r}, not a graph with nodes", path, "`return graph` at its end")
    unfit = []
    for setting in settings:
        try:
            _set(graph, setting)
        except ConfigError as error:
            unfit.append(str(error))
    if found := unfit + problems(graph):
        raise ConfigError("\n".join(["this graph cannot be built:", *(f"  - {problem}" for problem in found), ""]), path)
    return graph


def _set(graph: Graph, setting: str) -> None:
    name, dot, rest = setting.partition(".")
    option, equals, text = rest.partition("=")
    if not dot or not equals:
        raise ConfigError(f"--set {setting} is no setting", "", "--set NODE.option=value")
    places = [place for place, node in enumerate(graph.nodes) if node.name == name]
    if not places:
        raise ConfigError(f"--set {setting}: there is no node {name!r}", "", registry.nearest(name, [n.name for n in graph.nodes]))
    for place in places:
        node = graph.nodes[place]
        if option == "inputs":
            graph.nodes[place] = replace(node, inputs=tuple(filter(None, text.split(","))))
        else:
            graph.nodes[place] = replace(node, options=node.options | {option: text})


def problems(graph: Graph) -> list[str]:
    """A line for everything that would keep a graph from being built."""
    names = [node.name for node in graph.nodes]
    found = [f"two nodes are called {name!r}" for name in dict.fromkeys(names) if names.count(name) > 1]
    for node in graph.nodes:
        if not isinstance(node.name, str) or not _NAME.fullmatch(node.name):
            found.append(f"{node.name!r} is no name of a node: letters, digits, - and _ are")
        if not node.inputs:
            found.append(f"node {node.name} has no inputs")
        found += [f"node {node.name}: {problem}" for problem in [*_of_stage(node), *_of_inputs(graph, node)]]
    try:
        graph.ordered()
    except graphlib.CycleError as error:
        found.append(f"a circle: {' reads '.join(reversed(error.args[1]))}")
    return found


def _of_stage(node: Node) -> list[str]:
    """Of every option by itself; of the stage as a whole if each of them is right, and none is a folder that is still to be made."""
    found = []
    for option, given in node.options.items():
        try:
            registry.value(node.stage, option, given)
        except ConfigError as error:
            found.append(str(error))
    try:
        if not found and not _references(node):
            registry.make(node.stage, node.options)
        registry.options_of(node.stage)
    except MtnlgError as error:
        found.append(str(error))
    return list(dict.fromkeys(found))


def _of_inputs(graph: Graph, node: Node) -> list[str]:
    found = [f"there is no node {one[1:]!r}" for one in _references(node) if not graph.node_of(one[1:])]
    for one in node.inputs:
        is_elsewhere = one == sources.PYTHON or one.startswith(hub.PREFIX)
        if not graph.node_of(one) and not is_elsewhere and not pathlib.Path(one).exists():
            near = "/" not in one and difflib.get_close_matches(one, [other.name for other in graph.nodes], 1, 0.6)
            cure = near[0] if near else f"--set {node.name}.inputs=PATH,..."
            found.append(f"there is neither a node nor a file or folder {one!r}. Try: {cure}")
    return found
