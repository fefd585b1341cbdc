"""What a stage did, in a few lines for a terminal."""

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from mtnlg.factory import folder

MAX_REASONS = 4
DOCUMENTS, BYTES, TOKENS = "documents", "bytes", "tokens"  # units of the tables `UNIT read` and `UNIT written`, by source
DROPPED, CHANGED, PASSED_OVER, UNREADABLE, LENGTH = "dropped", "changed", "files passed over", "unreadable", "length"


@dataclass(frozen=True)
class Ended:
    """A stage that has ended: its name in the graph (or that of its folder), whence it read, and what its folder says of it."""

    name: str
    path: pathlib.Path
    stage: str
    options: dict
    inputs: tuple[str, ...]
    records: int
    seconds: float
    counts: Mapping[str, Mapping[str, int]]
    samples: Mapping[str, list[dict]]
    quarantine: list[dict]

    @classmethod
    def load(cls, path: pathlib.Path, name: str, inputs: tuple[str, ...]) -> "Ended":
        """Raises DataError where no stage has ended."""
        said = folder.read(path)
        tally = said["tally"]
        about = (said["stage"], said["options"], inputs, said["records"], said["seconds"])
        return cls(name, path, *about, tally["counts"], tally["samples"], tally["quarantine"])

    def by_source(self, unit: str, side: str) -> Mapping[str, int]:
        """{source: number} of what was `read` or `written`."""
        return self.counts.get(f"{unit} {side}", {})

    def total(self, unit: str, side: str) -> int:
        return sum(self.by_source(unit, side).values())

    @property
    def is_aside(self) -> bool:
        """Whether it read documents and made none, nor left any out: it learnt something from them."""
        return not any(self.counts.get(table) for table in (f"{DOCUMENTS} written", f"{BYTES} written", DROPPED))

    @property
    def speed(self) -> str:
        """In MB of text read per second; nothing for a stage too small to be measured."""
        megabytes = self.total(BYTES, "read") / 1e6
        return f"{megabytes / self.seconds:.1f} MB/s" if megabytes >= 0.1 and self.seconds else ""


def text(ended: Ended) -> str:
    """Documents, bytes, what was left out and why, and where to look."""
    speed = f", {ended.speed}" if ended.speed else ""
    lines = [f"{ended.name}: {ended.seconds:.1f} s{speed}, in {ended.path}"]
    for unit, show in ((DOCUMENTS, "{:,}".format), (BYTES, size), (TOKENS, "{:,}".format)):
        read, written = ended.total(unit, "read"), ended.total(unit, "written")
        if read and ended.is_aside:
            lines.append(f"  {unit:10} {show(read):>15} read")
        elif read:
            lines.append(f"  {unit:10} {show(read):>15} read {show(written):>15} written  {written / read:>7.1%}")
        elif written:
            lines.append(f"  {unit:10} {'':15}      {show(written):>15} written")
    for table, where in ((DROPPED, ""), (CHANGED, ""), (PASSED_OVER, ""), (UNREADABLE, f"  ({ended.path / folder.QUARANTINE})")):
        if reasons := ended.counts.get(table):
            lines.append(f"  {table:10} {sum(reasons.values()):>15,}: {top(reasons)}{where}")
    return "\n".join(lines)


def top(counts: Mapping[str, int], most: int = MAX_REASONS) -> str:
    """The largest of a table and how many others there are: "too short 12, javascript 3 and 2 more"."""
    ordered = [(printable(key), number) for key, number in ranked(counts)]
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(f"{key} {number:,}" for key, number in ordered[:most]) + more


def printable(text: str) -> str:
    """Without what a terminal or a browser might obey."""
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """(key, number), the largest first, equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def size(num_bytes: float) -> str:
    """Bytes for people, in decimal units: 12.3 MB."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6), ("kB", 3)):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"
