"""The bytes a stage writes depend on neither workers nor kills; what cannot be read is set aside and harms nobody."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc

import corpora
import pytest
from corpora import content, read, run

from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput
from mtnlg.factory import folder, stage
from mtnlg.factory import tally as tallies
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally
from mtnlg.factory.text.clean import Clean

DOCUMENTS = [{"id": str(n), "text": f"Document {n} says  what it\u00a0has to say. " * (1 + n % 7)} for n in range(300)]


def clean(inputs, output, **options):
    return run("clean", inputs, output, **{"min_chars": 50, "part_bytes": 5000, **options})


def test_any_number_of_workers_writes_the_same_bytes(corpus, tmp_path):
    tallies = [clean(corpus(DOCUMENTS), tmp_path / str(n), num_workers=n).as_json() for n in (1, 2, 4)]
    assert tallies[0] == tallies[1] == tallies[2]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "4")
    assert len(content(tmp_path / "1")) > 5


def test_every_document_is_written_or_counted(corpus, tmp_path):
    tally = clean(corpus(DOCUMENTS), tmp_path / "out")
    written = read(tmp_path / "out")
    assert len(written) + tally.counts["dropped"].total() == len(DOCUMENTS) == tally.counts["documents read"]["corpus"]
    assert [int(d["id"]) for d in written] == [n for n in range(300) if n % 7]
    assert all(d["source"] == "corpus" and "  " not in d["text"] for d in written)
    assert [s["id"] for s in tally.samples["dropped, too short"]] == ["0", "7", "14", "21", "28"]


KILLED = (
    corpora.KILLED
    + """
registry.make("clean", {"min_chars": 50}).run((sys.argv[1],), sys.argv[2], Machine(1, 5000, progress=False))
"""
)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_killed_and_run_again_it_ends_in_the_same_bytes(corpus, tmp_path, after):
    """The kill comes when a part has its name and the journal does not know it yet: the worst moment."""
    path = corpus(DOCUMENTS)
    whole = clean(path, tmp_path / "whole").as_json()
    killed = subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "killed"), str(after)])
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="has not ended"):
        clean(str(tmp_path / "killed"), tmp_path / "next")
    assert clean(path, tmp_path / "killed").as_json() == whole
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_the_journal_spares_what_was_done(corpus, tmp_path):
    """Negative control of the resume: a part that the journal knows is not made again."""
    path = corpus(DOCUMENTS)
    subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "out"), "4"])
    (tmp_path / "out" / "part-00001.jsonl.zst").write_bytes(b"")
    clean(path, tmp_path / "out")
    assert (tmp_path / "out" / "part-00001.jsonl.zst").read_bytes() == b""


def test_a_torn_line_of_the_journal_is_no_part(corpus, tmp_path):
    path = corpus(DOCUMENTS)
    clean(path, tmp_path / "whole")
    subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "out"), "3"])
    with (tmp_path / "out" / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"name": "part-000')
    clean(path, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_stage_that_has_ended_is_used_as_it_is(corpus, tmp_path):
    path = corpus(DOCUMENTS)
    first = clean(path, tmp_path / "out")
    before = os.stat(tmp_path / "out" / "part-00000.jsonl.zst").st_mtime_ns
    assert clean(path, tmp_path / "out").as_json() == first.as_json()
    assert os.stat(tmp_path / "out" / "part-00000.jsonl.zst").st_mtime_ns == before


def test_other_options_or_inputs_are_refused(corpus, tmp_path):
    clean(corpus(DOCUMENTS), tmp_path / "out")
    with pytest.raises(ConfigError, match="there: min_chars 50 there, 51 now"):
        clean(corpus(DOCUMENTS), tmp_path / "out", min_chars=51)
    with pytest.raises(ConfigError, match="made of other inputs, or these have changed since"):
        clean(corpus(DOCUMENTS[:-1]), tmp_path / "out")


HOSTILE = {
    b"{": "not JSON",
    b"[1]": "not a JSON object",
    b'{"id": 1}': "no text",
    b'{"text": 1}': "no text",
    b'{"text": "\xff"}': "invalid utf-8",
    b'{"text": "abc \xed\xa0\x80"}': "invalid utf-8",  # CESU-8
    b'{"text": "\\ud800"}': "lone surrogates",
    b'{"text": "a", "b": "\\udc00"}': "lone surrogates",
    b'{"text": "a", "b": NaN}': "not JSON",
    b'{"text": "a", "id": [1]}': "an id that is no word or number",
    b'{"text": "a", "source": [1]}': "a source that is no word",
    b"[" * 100_000: "nested too deep",
    b'{"text": "a", "b": ' + b"[" * 101 + b"]" * 101 + b"}": "nested too deep",
    b'{"text": "a", "b": 1e999}': "not JSON",
    b'{"text": "a", "b": ' + b"9" * 5000 + b"}": "not JSON",
}


def test_what_cannot_be_read_is_set_aside_and_named(corpus, tmp_path):
    path = corpus([DOCUMENTS[1], *HOSTILE, DOCUMENTS[2]])
    tally = clean(path, tmp_path / "out")
    assert [d["id"] for d in read(tmp_path / "out")] == ["1", "2"]
    listed = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_bytes().splitlines()]
    assert [(entry["where"], entry["reason"]) for entry in listed] == [
        (f"corpus:{n}", reason) for n, reason in enumerate(HOSTILE.values(), 2)
    ]
    assert tally.counts["unreadable"].total() == len(HOSTILE)


def test_a_file_that_is_cut_short_gives_what_it_has(tmp_path):
    import gzip

    whole = gzip.compress(b"".join(json.dumps(d).encode() + b"\n" for d in DOCUMENTS))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(whole)
    tally = clean([tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"], tmp_path / "out")
    assert 0 < tally.counts["documents read"]["a"] < 300 == tally.counts["documents read"]["b"]
    assert [reason.partition(":")[0] for reason in tally.counts["unreadable"]] == ["from here on"]


def test_inputs_that_are_not_there_or_not_jsonl(corpus, tmp_path):
    with pytest.raises(MissingInput, match="no file or folder"):
        clean(str(tmp_path / "nothing.jsonl"), tmp_path / "out")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match="no JSONL"):
        clean(str(tmp_path / "a.txt"), tmp_path / "out")
    with pytest.raises(DataError, match="no JSONL in this folder"):
        clean(str(tmp_path), tmp_path / "out")


def test_two_at_once_in_one_folder_are_refused(corpus, tmp_path):
    holder = f"from mtnlg.core import lock\nwith lock.held({str(tmp_path / 'out' / 'lock')!r}, print):\n print('held', flush=True); input()"
    (tmp_path / "out").mkdir()
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CannotWrite, match="is writing there"):
            clean(corpus(DOCUMENTS), tmp_path / "out")
        process.communicate("\n")


def test_workers_die_with_their_parent(corpus, tmp_path):
    """kill -9 of the parent leaves nobody behind."""
    script = """
import multiprocessing, os, time
from mtnlg.factory import workers
if __name__ == "__main__":
    for _ in workers.ordered(time.sleep, [0.1] * 4 + [60] * 4, 2):
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(map(_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


class Faulty:
    def __call__(self, document, tally):
        return [document | {"length": document["length"] + 1}] if int(document["id"]) % self.every == 0 else [document]


@pytest.mark.parametrize("num_records, every, ends", [(300, 1, False), (300, 2, True), (99, 2, True)])
def test_a_step_that_mostly_fails_is_at_fault_itself(corpus, tmp_path, num_records, every, ends):
    """A fault of the code is told with its line, and does not pass for so many bad documents."""
    step = Faulty()
    step.every = every
    go = functools.partial(
        stage.run, tmp_path / "out", "faulty", Clean(), Inputs((corpus(DOCUMENTS[:num_records]),)), machine=Machine(progress=False)
    )
    if ends:
        reason = next(iter(go(make_step=lambda: step).counts["unreadable"]))
        assert re.fullmatch(r"failed: KeyError in test_passes.py:\d+", reason)
    else:
        with pytest.raises(
            DataError, match=r"failed over 300 of 300 records, most often: failed: KeyError in test_passes.py:\d+; at corpus:1: 'length'"
        ):
            go(make_step=lambda: step)
        step.every = 1000  # mended
        go(make_step=lambda: step)
        assert [d["id"] for d in read(tmp_path / "out")] == [str(n) for n in range(1, 300)]


def test_the_seconds_of_a_stage_are_those_of_all_its_passes(corpus, tmp_path):
    clean(corpus(DOCUMENTS), tmp_path / "out" / "first")
    said = folder.read(tmp_path / "out" / "first")
    (tmp_path / "out" / "first" / folder.DONE).write_text(json.dumps(said | {"seconds": 1000.0}))
    clean(corpus(DOCUMENTS), tmp_path / "out")
    assert 1000 <= folder.read(tmp_path / "out")["seconds"] < 1100


def test_where_nothing_can_be_read_it_is_an_error(corpus, tmp_path):
    with pytest.raises(DataError, match="none of 2 records can be read, 2 of them: no text"):
        clean(corpus([b'{"body": "a"}', b'{"body": "b"}']), tmp_path / "out")


def test_a_part_that_is_gone_or_cut_is_noticed(corpus, tmp_path):
    path = corpus(DOCUMENTS)
    clean(path, tmp_path / "out")
    part = tmp_path / "out" / "part-00001.jsonl.zst"
    content = part.read_bytes()
    part.write_bytes(content + b"x")
    for name, source in (("out", path), ("next", str(tmp_path / "out"))):
        with pytest.raises(DataError, match=rf"{len(content) + 1} bytes, and {len(content)} were written"):
            clean(source, tmp_path / name)
    part.unlink()
    for name, source in (("out", path), ("next", str(tmp_path / "out"))):
        with pytest.raises(DataError, match="a file that the stage wrote is gone"):
            clean(source, tmp_path / name)


def test_damage_in_the_output_of_a_stage_is_an_error(corpus, tmp_path):
    clean(corpus(DOCUMENTS), tmp_path / "out")
    part = tmp_path / "out" / "part-00001.jsonl.zst"
    part.write_bytes(bytes(len(part.read_bytes())))
    with pytest.raises(DataError, match="damaged"):
        clean(str(tmp_path / "out"), tmp_path / "next")


def test_what_else_lies_in_the_folder_of_a_stage_is_not_read(corpus, tmp_path):
    clean(corpus(DOCUMENTS), tmp_path / "out", min_chars=0)
    (tmp_path / "out" / "mine.jsonl").write_text('{"text": "foreign"}')
    tally = clean(str(tmp_path / "out"), tmp_path / "next", min_chars=0)
    assert tally.counts["documents read"] == {"corpus": 300}
    with pytest.raises(ConfigError, match="holds the folders of stages: next, out"):
        clean(str(tmp_path), tmp_path / "all")


def test_a_folder_that_no_part_has_come_to_may_be_begun_otherwise(corpus, tmp_path):
    path = corpus(DOCUMENTS)
    subprocess.run([sys.executable, "-c", KILLED, path, str(tmp_path / "out"), "0"])
    clean(path, tmp_path / "out", min_chars=51)
    assert folder.read(tmp_path / "out")["options"]["min_chars"] == 51


def test_nothing_is_read_from_outside_a_folder_or_from_what_never_ends(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "secret.jsonl").write_text('{"text": "two"}\n')
    (there / "b.jsonl").symlink_to(tmp_path / "secret.jsonl")
    os.mkfifo(there / "c.jsonl")
    tally = clean(str(there), tmp_path / "out", min_chars=0)
    assert [one["text"] for one in read(tmp_path / "out")] == ["one"]
    assert tally.counts["unreadable"] == {"a link that leads out of the folder": 1, "no regular file": 1}


def test_an_output_inside_an_input_is_refused(corpus, tmp_path):
    corpus(DOCUMENTS)
    with pytest.raises(ConfigError, match="lies in the input"):
        clean(str(tmp_path), tmp_path / "out")


SET_ASIDE_KILLED = KILLED.replace("folder.Journal.add = add_or_die", "folder.Journal.end = lambda *_: os.kill(os.getpid(), 9)")


def test_what_is_set_aside_is_named_part_by_part_whatever_is_killed(corpus, tmp_path, monkeypatch):
    """With a kill when the file is there and the stage has not ended, and one between the parts."""
    monkeypatch.setattr(tallies, "MAX_QUARANTINED", 20)
    path = corpus([*DOCUMENTS, *[b"{" * 20] * 3000])
    total = clean(path, tmp_path / "whole")
    named = (tmp_path / "whole" / "quarantine.jsonl").read_bytes()
    assert len(total.quarantine) == 20 < len(named.splitlines()) < 3000 == total.counts["unreadable"].total()
    monkeypatch.undo()
    whole = clean(path, tmp_path / "all")
    named = (tmp_path / "all" / "quarantine.jsonl").read_bytes()
    assert len(whole.quarantine) == 1000 and len(named.splitlines()) == 3000
    for name, script in (("a", SET_ASIDE_KILLED), ("b", KILLED)):
        assert subprocess.run([sys.executable, "-c", script, path, str(tmp_path / name), "5"]).returncode == -signal.SIGKILL
        assert clean(path, tmp_path / name).as_json() == whole.as_json()
        assert (tmp_path / name / "quarantine.jsonl").read_bytes() == named


def test_totals_are_right_however_many_sources(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tallies, "MAX_KEYS", 20)
    path = corpus([{"text": "t" * 50, "source": f"source {n % 100}", "id": n} for n in range(1000)])
    totals = [clean(path, tmp_path / str(n), num_workers=n).as_json() for n in (1, 2)]
    read = totals[0]["counts"]["documents read"]
    assert totals[0] == totals[1] and sum(read.values()) == 1000 and len(read) <= 41 and read["(others)"] > 0


def test_long_ids_and_sources_are_cut_in_what_is_said(corpus, tmp_path):
    clean(corpus([{"text": "t", "id": f"{n}" * 10**6, "source": "s" * 10**6} for n in range(6)]), tmp_path / "out")
    assert (tmp_path / "out" / folder.DONE).stat().st_size < 20_000


def test_a_journal_is_read_line_by_line(corpus, tmp_path):
    """Of many parts with large tallies one is in memory at a time."""
    words = {f"word {n}": n for n in range(5000)}
    known = [
        folder.part(f"part-{n:05d}", "", 0) | {"place": (0, n, n), "seconds": 0, "tally": Tally({"words": words}).as_json()}
        for n in range(40)
    ]
    (tmp_path / folder.JOURNAL).write_bytes(folder.line({"stage": "t"}) + b"".join(map(folder.line, known)))
    tracemalloc.start()
    journal = folder.Journal(tmp_path, {"stage": "t"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(journal.parts) == 40 and journal.tally.counts["words"]["word 7"] == 280
    assert peak < 4_000_000
