"""Builds a graph: every node in its folder, what is there already used as it is, what does not fit told before anything runs."""

import json
import pathlib
import shutil
from collections.abc import Callable, Collection

from mtnlg.core import files, lock
from mtnlg.core.errors import CannotWrite, ConfigError, DataError
from mtnlg.factory import folder, registry
from mtnlg.factory.graph import Graph, Node
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally

ASKED = "build.json"  # what each node was asked for when its folder was begun
_DELETING = ".deleting"  # behind the name of a folder


def run(
    graph: Graph, output, machine: Machine, redo: Collection[str] = (), told: Callable[[Node, pathlib.Path, Tally], None] | None = None
) -> None:
    """Runs the nodes in order into folders of `output` that bear their names; `told` hears of each that has ended.

    A node whose folder is there is used as it is. Killed anywhere and run again, it ends in the same bytes. redo: nodes whose folders,
    and those behind them, may be deleted where they hold something else than the graph asks for; without it OtherWritten is raised.
    Raises ConfigError, and what the stages raise.
    """
    output = pathlib.Path(output)
    if unknown := [name for name in redo if name not in [node.name for node in graph.nodes]]:
        raise ConfigError(f"there is no node {unknown[0]!r}", "--redo", registry.nearest(unknown[0], [node.name for node in graph.nodes]))
    files.make_folder(output)
    with lock.held(output / "build.lock", lambda owner: _busy(output, owner)):
        for left in output.glob(f"*{_DELETING}"):
            shutil.rmtree(left)
        _Build(graph, output, machine, graph.behind(redo)).run(told)


def look(graph: Graph, output, redo: Collection[str] = ()) -> dict[str, str]:
    """What `run` would do with each node, in order, as far as that can be told before it. Raises OtherWritten as `run` does."""
    build = _Build(graph, pathlib.Path(output), Machine(), graph.behind(redo))
    changed = build.changed()
    return {node.name: build.state(node, changed) for node in graph.ordered()}


def _busy(output: pathlib.Path, owner: str) -> None:
    raise CannotWrite(f"{owner} is building there", str(output), "waiting for it, or another --output")


class _Build:
    def __init__(self, graph: Graph, output: pathlib.Path, machine: Machine, replaceable: set[str]):
        self._graph, self._output, self._machine, self._replaceable = graph, output, machine, replaceable
        self._asked = _read_asked(output / ASKED)

    def changed(self) -> dict[str, str]:
        """Why folders do not fit, by node. Raises OtherWritten."""
        found = {node.name: why for node in self._graph.ordered() if (why := self._why_changed(node))}
        self._require_replaceable(found)
        return found

    def state(self, node: Node, changed: dict[str, str]) -> str:
        path = self._output / node.name
        if node.name in changed:
            return f"made anew ({changed[node.name]})"
        if self._graph.behind(changed) & set(self._graph.before(node)):
            return "made anew where what it reads is another then"
        return "there" if (path / folder.DONE).exists() else "goes on" if (path / folder.JOURNAL).exists() else "to be made"

    def run(self, told) -> None:
        changed = self.changed()
        for node in self._graph.ordered():
            if node.name in changed:
                self._delete(node)
            tally = self._run(node)
            if told:
                told(node, self._output / node.name, tally)

    def _run(self, node: Node) -> Tally:
        self._remember(node)
        stage = registry.make(node.stage, self._graph.options_of(node, self._output))
        try:
            return stage.run(self._graph.inputs_of(node, self._output), self._output / node.name, self._machine)
        except folder.OtherWritten as error:
            self._require_replaceable({node.name: error.what})
            self._delete(node)
            return self._run(node)

    def _why_changed(self, node: Node) -> str:
        """In what the folder of a node was asked for otherwise than now; nothing for one that is not there or not known."""
        before, now = self._asked.get(node.name), self._asked_for(node)
        if before is None or before == now or not (self._output / node.name).exists():
            return ""
        if before["stage"] != now["stage"]:
            return f"stage {before['stage']} there, {now['stage']} now"
        options = {key: (before["options"].get(key), value) for key, value in now["options"].items()}
        found = [f"{key} {there!r} there, {here!r} now" for key, (there, here) in options.items() if there != here]
        if before["inputs"] != now["inputs"]:
            found.append(f"inputs {', '.join(before['inputs'])} there, {', '.join(now['inputs'])} now")
        return "; ".join(found)

    def _require_replaceable(self, changed: dict[str, str]) -> None:
        """Raises OtherWritten, naming every folder that does not fit and those behind it, unless all of them may be deleted."""
        refused = [name for name in changed if name not in self._replaceable]
        if not refused:
            return
        behind = [node.name for node in self._graph.ordered() if node.name in self._graph.behind(refused) and node.name not in refused]
        lines = [f"  - {name}: {changed[name]}" for name in refused]
        lines += [f"  - {name}: made of the above" for name in behind if (self._output / name).exists()]
        what = "\n".join(["folders hold something else than the graph asks for:", *lines, ""])
        cure = f"--redo={','.join(refused)} to make these anew, or another --output"
        raise folder.OtherWritten(what, str(self._output), cure)

    def _remember(self, node: Node) -> None:
        if self._asked.get(node.name) != (now := self._asked_for(node)):
            self._asked[node.name] = now
            files.write_atomic(self._output / ASKED, json.dumps(self._asked, indent=1, ensure_ascii=False) + "\n")

    def _asked_for(self, node: Node) -> dict:
        """What a node is asked for, as it will be read again. Files are known by their names here, and by more in their folder."""
        options = {option: field.default for option, field in registry.fields_of(node.stage).items()}
        options |= {option: registry.value(node.stage, option, given) for option, given in node.options.items()}
        inputs = [one if self._graph.node_of(one) else pathlib.Path(one).name for one in node.inputs]
        return json.loads(json.dumps({"stage": node.stage, "options": options, "inputs": inputs}))

    def _delete(self, node: Node) -> None:
        """The folder of a node, at once for whoever looks. Raises CannotWrite where no stage has been at work."""
        path = self._output / node.name
        if not any(any(path.rglob(name)) for name in (folder.DONE, folder.JOURNAL)):
            raise CannotWrite("no stage has written this folder, so it is not deleted", str(path), "another --output")
        self._machine.say(f"{path}: deleted, to be made anew")
        with files.writing(path):
            shutil.rmtree(path.rename(path.with_name(path.name + _DELETING)))


def _read_asked(path: pathlib.Path) -> dict:
    try:
        found = json.loads(path.read_bytes()) if path.exists() else {}
        return {name: {key: dict(entry)[key] for key in ("stage", "options", "inputs")} for name, entry in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cure = "deleting it; folders that do not fit are then found when their turn comes"
        raise DataError(f"damaged: {error!r}", str(path), cure) from None
