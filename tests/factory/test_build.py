"""A build goes on where it was killed, uses what is there, and tells before it runs what does not fit."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from corpora import content, read

from mtnlg.core.errors import CannotWrite, ConfigError
from mtnlg.factory import build
from mtnlg.factory.folder import OtherWritten
from mtnlg.factory.graph import Graph
from mtnlg.factory.passes import Machine

pytestmark = pytest.mark.usefixtures("fake_stages")

DOCUMENTS = [{"id": str(n), "text": f"Document {n} says what it has to say. " * (1 + n % 7)} for n in range(120)]
NODES = ("first", "other", "both", "counted")


def graph_of(path, **options) -> Graph:
    """`both` reads what `first` and `other` kept; `counted` reads `both`. Options of `first`."""
    graph = Graph()
    graph.add("counted", stage="words", inputs=["both"])
    graph.add("both", stage="keep", inputs=["first", "other"], without="Document 3")
    graph.add("first", stage="keep", inputs=[path], **{"min_chars": 100, **options})
    graph.add("other", stage="keep", inputs=[path], without="Document 4")
    return graph


def run(graph, output, redo=(), num_workers=1):
    ended = []
    machine = Machine(num_workers, part_bytes=5000, progress=False)
    build.run(graph, output, machine, redo, lambda node, path, tally: ended.append(node.name))
    return ended


def everything(output):
    return {name: content(output / name) for name in NODES if (output / name).exists()}


def times(output):
    return {name: os.stat(output / name / "stage.json").st_mtime_ns for name in NODES}


@pytest.fixture
def built(corpus, tmp_path):
    run(graph_of(corpus(DOCUMENTS)), tmp_path / "built")
    return tmp_path / "built"


def test_each_node_reads_what_those_before_it_wrote(built):
    first, other, both, counted = (read(built / name) for name in NODES)
    assert [d["id"] for d in first] == [d["id"] for d in DOCUMENTS if len(d["text"]) >= 100]
    assert [d["id"] for d in other] == [d["id"] for d in DOCUMENTS if "Document 4" not in d["text"]]
    assert both == [d for d in first + other if "Document 3" not in d["text"]] == counted


def test_built_again_nothing_is_made_again(built):
    before = times(built)
    assert sorted(run(graph_of(str(built.parent / "corpus.jsonl")), built)) == sorted(NODES)
    assert times(built) == before


KILLED = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[4])
import fakes, test_build
fakes.register()
from mtnlg.factory import folder

done, after, add = 0, int(sys.argv[3]), folder.Journal.add
def add_or_die(journal, part):
    global done
    if done == after:
        os.kill(os.getpid(), 9)
    done += 1
    add(journal, part)
folder.Journal.add = add_or_die
test_build.run(test_build.graph_of(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""


def test_killed_in_any_node_and_run_again_it_ends_in_the_same_bytes(built, corpus, tmp_path):
    path, killed = built.parent / "corpus.jsonl", tmp_path / "killed"
    num_parts = sum(len(content(built / name)) for name in NODES)
    for _ in range(4):  # each start goes on where the last was killed: somewhere in each of the nodes
        code = [sys.executable, "-c", KILLED, str(path), str(killed), str(num_parts // 5), str(pathlib.Path(__file__).parent)]
        assert subprocess.run(code).returncode == -signal.SIGKILL
    assert len(everything(killed)) == 4
    run(graph_of(str(path)), killed, num_workers=2)
    assert everything(killed) == everything(built)


def test_a_changed_option_is_told_with_all_that_hangs_on_it(built):
    before = everything(built)
    with pytest.raises(OtherWritten) as caught:
        run(graph_of(str(built.parent / "corpus.jsonl"), min_chars=200), built)
    said = str(caught.value)
    assert "  - first: min_chars 100 there, 200 now\n  - both: made of the above\n  - counted: made of the above\n" in said
    assert "other" not in said.replace("another", "") and "Try: --redo=first to make these anew" in said
    assert everything(built) == before


def test_redo_makes_anew_what_has_changed_and_nothing_else(built, tmp_path):
    path, before, kept = str(built.parent / "corpus.jsonl"), times(built), everything(built)
    run(graph_of(path, min_chars=200), built, redo=["first"])
    assert [name for name in NODES if times(built)[name] == before[name]] == ["other"]
    run(graph_of(path, min_chars=200), tmp_path / "fresh")
    assert everything(built) == everything(tmp_path / "fresh") != kept
    again = times(built)
    run(graph_of(path, min_chars=200), built, redo=["first"])  # as after a kill: what fits is not deleted again
    assert times(built) == again


def test_a_redo_that_does_not_reach_far_enough_is_refused(built):
    with pytest.raises(OtherWritten, match="--redo=first"):
        run(graph_of(str(built.parent / "corpus.jsonl"), min_chars=200), built, redo=["both"])
    with pytest.raises(ConfigError, match=r"no node 'frist' .*Try: first"):
        run(graph_of(str(built.parent / "corpus.jsonl")), built, redo=["frist"])


def test_a_changed_input_is_found_when_its_turn_comes(built, corpus):
    path = corpus(DOCUMENTS[:-1])
    with pytest.raises(OtherWritten, match=r"(?s)  - first: .*made of other inputs.*  - both: .*--redo=first"):
        run(graph_of(path), built)
    run(graph_of(path), built, redo=["first", "other"])
    assert all(d["id"] != "119" for d in read(built / "counted"))


def test_a_folder_deleted_and_made_again_leaves_the_others_as_they_are(built):
    """Its bytes are the same, and so is what the next node knows it by, whatever time it took."""
    before = times(built)
    shutil.rmtree(built / "first")
    run(graph_of(str(built.parent / "corpus.jsonl")), built)
    assert [name for name in NODES if times(built)[name] != before[name]] == ["first"]


def test_what_no_stage_wrote_is_not_deleted(corpus, tmp_path):
    graph = graph_of(corpus(DOCUMENTS))
    run(graph, tmp_path / "out")
    for left in (tmp_path / "out" / "first").iterdir():
        left.unlink()
    (tmp_path / "out" / "first" / "precious.txt").write_text("mine")
    with pytest.raises(CannotWrite, match="is not deleted"):
        run(graph_of(str(tmp_path / "corpus.jsonl"), min_chars=200), tmp_path / "out", redo=["first"])
    assert (tmp_path / "out" / "first" / "precious.txt").exists()


def test_a_deletion_that_was_killed_is_finished(built):
    (built / "first").rename(built / "first.deleting")
    run(graph_of(str(built.parent / "corpus.jsonl")), built)
    assert not list(built.glob("*.deleting")) and (built / "first" / "stage.json").exists()
