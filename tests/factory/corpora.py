"""Stages run on small corpora, and what they wrote."""

import io
import json
import pathlib

import zstandard

from mtnlg.factory import registry
from mtnlg.factory.passes import Machine


def run(name: str, inputs, output, *, num_workers: int = 1, part_bytes: int = 64_000_000, **options):
    """The tally of a stage."""
    paths = (inputs,) if isinstance(inputs, str) else tuple(map(str, inputs))
    return registry.make(name, options).run(paths, output, Machine(num_workers, part_bytes, progress=False))


def read(folder) -> list[dict]:
    """The documents that a stage wrote."""
    found = []
    for part in sorted(pathlib.Path(folder).glob("part-*.jsonl.zst")):
        with zstandard.ZstdDecompressor().stream_reader(part.open("rb"), read_across_frames=True) as stream:
            found += [json.loads(line) for line in io.TextIOWrapper(stream, "utf-8", newline="\n")]
    return found


def content(folder) -> dict[str, bytes]:
    """{name: bytes} of everything a stage wrote that is not about the run itself."""
    return {path.name: path.read_bytes() for path in pathlib.Path(folder).glob("part-*")}


# A script that is killed when a part has its name and the journal, which has argv[3] parts by then, does not know it yet.
KILLED = """
import os, sys
from mtnlg.factory import folder, registry
from mtnlg.factory.passes import Machine

add, after = folder.Journal.add, int(sys.argv[3])
def add_or_die(journal, part):
    if len(journal.parts) == after:
        os.kill(os.getpid(), 9)
    add(journal, part)
folder.Journal.add = add_or_die
"""
