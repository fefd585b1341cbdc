"""Small pictures: ranked bars, columns over numbers, and streams of what is left of each source from stage to stage."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mtnlg.factory.report.markup import Markup, tag
from mtnlg.factory.report.summary import ranked

MOST_BARS = 12
TIP_SOURCES = 20  # named where a pointer rests on their colour
_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
MOST_COLUMNS = 24
WIDTH, LEFT, RIGHT = 1030, 170, 190  # of streams, in pixels: all, before the bars, behind them
ROW, BAR = 46, 22


def bars(counts: Mapping[str, int]) -> Markup:
    """The largest of a table, each with a bar against the largest; in their own order where keys differ in nothing but numbers."""
    is_scale = len(counts) <= MOST_BARS and len({_NUMBER.sub("", key) for key in counts}) == 1
    ordered = sorted(counts.items(), key=lambda item: [float(n) for n in _NUMBER.findall(item[0])]) if is_scale else ranked(counts)
    most, rest = max([1, *counts.values()]), ordered[MOST_BARS:]
    rows = [
        tag(
            "tr",
            tag("th", key or "(none)", scope="row"),
            tag("td", f"{number:,}", class_="num"),
            tag("td", tag("i", style=f"width:{100 * number / most:.1f}%"), class_="track"),
        )
        for key, number in ordered[:MOST_BARS]
    ]
    note = tag("p", f"and {len(rest):,} more, {sum(number for _, number in rest):,} together", class_="soft") if rest else ""
    return tag("div", tag("table", rows, class_="bars"), note)


def columns(counts: Mapping[int, int], unit: str) -> Markup:
    """A histogram over numbers; where there are many of them, those between two powers of two are one column."""
    if len(counts) > MOST_COLUMNS:
        counts = _by_powers(counts)
    values, most = sorted(counts), max(counts.values())
    width, height = 460, 130
    step = min(width / len(values), 56)
    parts = []
    for place, value in enumerate(values):
        tall = max(height * counts[value] / most, 1)
        x = place * step
        shape = tag(
            "rect", class_="column", x=f"{x + 1:.1f}", y=f"{height - tall + 16:.1f}", width=f"{step - 2:.1f}", height=f"{tall:.1f}", rx=1.5
        )
        parts.append(tag("g", tag("title", f"{value:,} {unit}: {counts[value]:,}"), shape))
        if len(values) <= 12 or place % 2 == 0:
            parts.append(tag("text", brief(value, 1024), x=f"{x + step / 2:.1f}", y=height + 32, text_anchor="middle", class_="soft"))
        if len(values) <= 12:
            above = f"{height - tall + 11:.1f}"
            parts.append(tag("text", brief(counts[value]), x=f"{x + step / 2:.1f}", y=above, text_anchor="middle"))
    return tag("svg", parts, viewBox=f"0 0 {width} {height + 38}", role="img", aria_label=f"histogram, {unit}")


def _by_powers(counts: Mapping[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for value, number in counts.items():
        least = 1 << value.bit_length() - 1 if value > 0 else 0
        found[least] = found.get(least, 0) + number
    return found


class Level(NamedTuple):
    """What is left at one place on the way: {source: number}; is_guess: estimated, not counted."""

    label: str
    parts: Mapping[str, float]
    is_guess: bool = False

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def streams(levels: Sequence[Level], colour_of: Mapping[str, int], show: Callable[[float], str]) -> Markup:
    """A bar for each level, in parts by source, with what flows on to the next drawn between."""
    first = max([level.total for level in levels] + [1])
    scale = (WIDTH - LEFT - RIGHT) / first
    shapes, before = [], None
    for place, level in enumerate(levels):
        y, here = place * ROW, _parts(level, colour_of, scale)
        if before is not None:
            shapes += [_stream(colour, before.get(colour), span, y) for colour, span in here.items() if colour in before]
        guess = " guess" if level.is_guess else ""
        for colour, (x, end) in here.items():
            bar = tag("rect", class_=f"c{colour}{guess}", x=f"{x:.1f}", y=y, width=f"{max(end - x, 0.5):.1f}", height=BAR)
            shapes.append(tag("g", tag("title", _tip(level, colour, colour_of, show)), bar))
        number = f"{'≈ ' if level.is_guess else ''}{show(level.total)}"
        shapes.append(tag("text", _cut(level.label), x=LEFT - 12, y=y + 16, text_anchor="end"))
        shapes.append(tag("text", number, x=WIDTH - RIGHT + 110, y=y + 16, text_anchor="end"))
        share = level.total / levels[0].total if levels[0].total else 0
        shapes.append(tag("text", f"{share:.1%}", x=WIDTH, y=y + 16, text_anchor="end", class_="soft"))
        before = here
    return tag("svg", shapes, viewBox=f"0 0 {WIDTH} {len(levels) * ROW - ROW + BAR + 4}", role="img", aria_label="what is left by stage")


def _parts(level: Level, colour_of: Mapping[str, int], scale: float) -> dict[int, tuple[float, float]]:
    """{colour: (from, to)} of a level's bar."""
    sizes: dict[int, float] = {}
    for source, number in level.parts.items():
        sizes[colour_of[source]] = sizes.get(colour_of[source], 0) + number
    ordered = sorted(sizes)
    ends = list(itertools.accumulate((sizes[colour] * scale for colour in ordered), initial=LEFT))
    return {colour: span for colour, span in zip(ordered, itertools.pairwise(ends), strict=True)}


def _stream(colour: int, above: tuple[float, float], below: tuple[float, float], y: float) -> Markup:
    corners = [(above[0], y - ROW + BAR), (above[1], y - ROW + BAR), (below[1], y), (below[0], y)]
    return tag("polygon", class_=f"c{colour} stream", points=" ".join(f"{x:.1f},{height}" for x, height in corners))


def _tip(level: Level, colour: int, colour_of: Mapping[str, int], show) -> str:
    mine = [(source, number) for source, number in level.parts.items() if colour_of[source] == colour]
    mine.sort(key=lambda item: -item[1])
    told = [f"{source} {show(number)}" for source, number in mine[:TIP_SOURCES]]
    if others := mine[TIP_SOURCES:]:
        told.append(f"{len(others):,} others {show(sum(number for _, number in others))}")
    return f"{level.label}: " + ", ".join(told)


def _cut(label: str) -> str:
    return label if len(label) <= 22 else label[:21] + "…"


def brief(number: int, base: int = 1000) -> str:
    """A whole number in few characters: 16k. base: 1024 for powers of two."""
    for unit, power in (("G", 3), ("M", 2), ("k", 1)):
        if number >= base**power and (number >= 10 * base**power or number % base**power == 0):
            return f"{number // base**power}{unit}"
    return str(number)
