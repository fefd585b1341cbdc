"""Damage to the files of a checkpoint, drawn by a seed, and whether each is found: the right file named, and the step before taken."""

import contextlib
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mtnlg import checkpoint
from mtnlg.core import manifest

PAGE_BYTES = 4096


class Outcome(NamedTuple):
    """Of one mutation. said: what the manifest finds first; is_named: whether that is a file with damage."""

    kind: str
    file: str
    said: str
    is_named: bool
    lands_on_older: bool

    @property
    def is_found(self) -> bool:
        return self.is_named and self.lands_on_older


def flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def exchange_bytes(content: bytearray, draw: random.Random) -> None:
    first, second = draw.randrange(len(content)), draw.randrange(len(content))
    content[first], content[second] = content[second], content[first]


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def zero_page(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(-(-len(content) // PAGE_BYTES)) * PAGE_BYTES
    page = content[start : start + PAGE_BYTES]
    content[start : start + PAGE_BYTES] = bytes(len(page))


INSIDE: dict[str, Callable[[bytearray, random.Random], None]] = {
    "a bit flipped": flip,
    "two bytes exchanged": exchange_bytes,
    "truncated": truncate,
    "a page of zeros": zero_page,
}
STALE = ("that of another step", "the manifest of another step")
KINDS = (*INSIDE, "deleted", "an extra file", *STALE)


def damage(kind: str, file: pathlib.Path, newest: pathlib.Path, older: pathlib.Path, draw: random.Random) -> None:
    """Does it to one file of `newest`; it may leave the file as it was, where its bytes are alike."""
    twin = older / file.relative_to(newest)
    if kind == "deleted":
        file.unlink()
    elif kind == "an extra file":
        file.with_name(f"{file.name}.{draw.randrange(10**6)}").write_bytes(file.read_bytes())
    elif kind == "the manifest of another step":
        shutil.copyfile(older / manifest.NAME, newest / manifest.NAME)
    elif kind == "that of another step":
        if twin.is_file():
            shutil.copyfile(twin, file)
    elif content := bytearray(file.read_bytes()):
        INSIDE[kind](content, draw)
        file.write_bytes(content)


def outcomes(directory: pathlib.Path, number: int, seed: int) -> Iterator[Outcome]:
    """Of so many mutations of the newest of the two steps in a folder, over every file and kind in turn; all is undone after each."""
    older, newest = (directory / str(step) for step in checkpoint.whole_steps(directory)[-2:])
    draw, files = random.Random(seed), sorted(path for path in newest.rglob("*") if path.is_file())
    turns = ((kind, file) for file in again_and_again(files, draw) for kind in KINDS)
    while number:
        kind, file = next(turns)
        with kept_aside(newest) as whole:
            damage(kind, file, newest, older, draw)
            changed = different(whole, newest)
            if not changed:
                continue
            if kind in STALE and manifest.NAME in changed:  # to it, the files are those of the wrong step
                changed |= different(whole, older)
            number -= 1
            said = next(iter(manifest.problems(newest)), "")
            found = checkpoint.newest_good([directory], report=lambda line: None)
            is_named = any(said.startswith(f"{name} ") for name in changed)
            yield Outcome(kind, str(file.relative_to(newest)), said, is_named, found == older)


def again_and_again(items: list, draw: random.Random) -> Iterator:
    """All of them in some order, and again in another, for ever."""
    while True:
        yield from draw.sample(items, len(items))


@contextlib.contextmanager
def kept_aside(step_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """A whole copy, which takes the step's place again in the end, whatever has become of it."""
    whole = step_dir.with_name(f"{step_dir.name}.whole")
    shutil.copytree(step_dir, whole)
    try:
        yield whole
    finally:
        for left in [step_dir, *step_dir.parent.glob(f"{step_dir.name}.corrupt*")]:
            shutil.rmtree(left, ignore_errors=True)
        whole.rename(step_dir)


def different(whole: pathlib.Path, damaged: pathlib.Path) -> set[str]:
    """Names of the files that are not the same in both folders."""
    contents = [{str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} for folder in (whole, damaged)]
    return {name for name in contents[0] | contents[1] if contents[0].get(name) != contents[1].get(name)}
