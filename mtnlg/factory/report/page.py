"""One page about a build or a stage: how much is left where, what was left out and why, and samples to look at.

It needs neither network nor script. What it shows of the texts is escaped, and a policy in the page lets no script run whatever happens.
"""

import pathlib
from collections.abc import Mapping, Sequence

from mtnlg.core import files
from mtnlg.factory import folder
from mtnlg.factory.report import charts, levels
from mtnlg.factory.report.markup import Markup, content, tag
from mtnlg.factory.report.style import COLOURS, CSS
from mtnlg.factory.report.summary import BYTES, DOCUMENTS, DROPPED, LENGTH, UNREADABLE, Ended, ranked, size

MOST_QUARANTINED = 25  # named here; the folder's file has more
MOST_SOURCES = 100  # named in the table of sources
OPEN_STAGES = 8  # with more of them, all are folded up
HEADINGS = {
    DROPPED: "Left out, by reason",
    UNREADABLE: "Could not be read, by reason",
    LENGTH: "Lengths, characters at least",
    "language": "Languages",
    "clusters by size": "Duplicates, documents in a cluster",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(path, title: str, ended: Sequence[Ended]) -> None:
    """Writes the page of these stages, in the order in which they ran. Raises CannotWrite, TemporaryFailure."""
    path = pathlib.Path(path)
    files.make_folder(path.parent)
    files.write_atomic(path, page(title, ended))


def page(title: str, ended: Sequence[Ended]) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(CSS)),
    )
    parts = [_headline(title, ended), _streams(ended), _stages_table(ended), _sources_table(ended)]
    parts += [tag("h2", "Stage by stage")] + [_stage(one, len(ended) <= OPEN_STAGES) for one in ended]
    return "<!doctype html>\n" + tag("html", head, "\n", tag("body", tag("main", parts)), lang="en") + "\n"


def _headline(title: str, ended: Sequence[Ended]) -> Markup:
    documents, num_bytes = (levels.counted(ended, unit) for unit in (DOCUMENTS, BYTES))
    facts = []
    for shown, show, name in ((documents, "{:,.0f}".format, "documents"), (num_bytes, size, "of text")):
        if shown and shown[0].total:
            kept = shown[-1].total / shown[0].total
            facts.append((show(shown[-1].total), f"{name} left, {kept:.1%} of {show(shown[0].total)}"))
    if found := levels.tokens(ended):
        facts.append((f"{found[-1].total:,.0f}", "tokens"))
    unread = sum(sum(one.counts.get(UNREADABLE, {}).values()) for one in ended)
    facts.append((f"{unread:,}", "records that could not be read"))
    facts.append((_time(sum(one.seconds for one in ended)), f"in {len(ended)} stage{'s' * (len(ended) > 1)}"))
    cards = [tag("div", tag("b", value), tag("span", meaning), class_="fact") for value, meaning in facts]
    return content(
        tag("h1", title),
        tag("p", " → ".join(label for label, _ in levels.grouped(ended)), class_="soft"),
        tag("div", cards, class_="facts"),
    )


def _streams(ended: Sequence[Ended]) -> Markup:
    """How much is left of each source, in three units."""
    documents, num_bytes, tokens = levels.counted(ended, DOCUMENTS), levels.counted(ended, BYTES), levels.tokens(ended)
    colours = _colours(num_bytes)
    kinds = (
        (documents, "Documents", "{:,.0f}".format),
        (num_bytes, "Bytes of text", size),
        (tokens, _tokens_caption(ended), "{:,.0f}".format),
    )
    figures = [
        tag("figure", tag("figcaption", caption), tag("div", charts.streams(shown, colours, show), class_="scroll"))
        for shown, caption, show in kinds
        if shown
    ]
    return content(tag("h2", "What is left"), _legend(colours), figures) if figures else Markup()


def _tokens_caption(ended: Sequence[Ended]) -> str:
    rates = levels.tokens_per_byte(ended)
    spread = f"{min(rates.values()):.3f}" + (f" to {max(rates.values()):.3f}" if len(rates) > 1 else "") if rates else ""
    return f"Tokens; ≈ estimated from bytes, at the {spread} tokens a byte that were counted at the end"


def _colours(shown: Sequence[charts.Level]) -> dict[str, int]:
    """{source: number of its colour}: the largest sources have their own, all others share the last."""
    sizes: dict[str, float] = {}
    for level in shown:
        for source, number in level.parts.items():
            sizes[source] = max(sizes.get(source, 0), number)
    return {source: min(place, len(COLOURS) - 1) for place, (source, _) in enumerate(ranked(sizes))}


def _legend(colours: Mapping[str, int]) -> Markup:
    own = [(source, colour) for source, colour in colours.items() if colour < len(COLOURS) - 1]
    others = len(colours) - len(own)
    own += [(f"{others} others", len(COLOURS) - 1)] if others else []
    return tag("div", [tag("span", tag("i", class_=f"c{colour}"), source) for source, colour in own], class_="legend")


def _stages_table(ended: Sequence[Ended]) -> Markup:
    head = ("stage", "documents read", "written", "kept", "text read", "written", "left out", "unreadable", "seconds", "speed")
    rows = []
    for one in ended:
        read, written = one.total(DOCUMENTS, "read"), one.total(DOCUMENTS, "written")
        cells = [f"{read:,}", f"{written:,}", f"{written / read:.1%}" if read and not one.is_aside else "", size(one.total(BYTES, "read"))]
        cells += [size(one.total(BYTES, "written")), *(f"{sum(one.counts.get(table, {}).values()):,}" for table in (DROPPED, UNREADABLE))]
        rows.append([one.name, *cells, f"{one.seconds:,.1f}", one.speed])
    return content(tag("h2", "Stages"), _table(head, rows))


def _sources_table(ended: Sequence[Ended]) -> Markup:
    shown, tokens = levels.counted(ended, DOCUMENTS), levels.tokens(ended)
    if not shown:
        return Markup()
    last = tokens[-1].parts if tokens else {}
    head = ("source", *(level.label for level in shown), "kept", *(["tokens"] if last else []))
    firsts = {source: number for level in reversed(shown) for source, number in level.parts.items()}
    ordered = [source for source, _ in ranked(firsts)]
    groups = [(source, [source]) for source in ordered[:MOST_SOURCES]]
    if others := ordered[MOST_SOURCES:]:
        groups.append((f"{len(others):,} others", others))
    rows = []
    for name, sources in groups:
        numbers = [sum(level.parts.get(source, 0) for source in sources) for level in shown]
        first = sum(firsts[source] for source in sources)
        cells = [*(f"{number:,}" for number in numbers), f"{numbers[-1] / first:.1%}" if first else ""]
        rows.append([name, *cells, *([f"{sum(last.get(source, 0) for source in sources):,.0f}"] if last else [])])
    return content(tag("h2", "Documents of each source"), _table(head, rows))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    def line(kind: str, cells: Sequence[str]) -> Markup:
        return tag("tr", tag("th", cells[0]), [tag(kind, cell, class_="num") for cell in cells[1:]])

    return tag("div", tag("table", tag("thead", line("th", head)), tag("tbody", [line("td", row) for row in rows])), class_="scroll")


def _stage(one: Ended, is_open: bool) -> Markup:
    """Everything that a stage counted and kept, folded up if need be."""
    tables = [(name, table) for name, table in one.counts.items() if table and not name.endswith((" read", " written"))]
    order = list(HEADINGS)
    tables.sort(key=lambda item: (order.index(item[0]) if item[0] in order else len(order), item[0]))
    return tag(
        "details",
        tag("summary", one.name, tag("span", f"{one.stage} of {', '.join(one.inputs)}")),
        tag(
            "div", [tag("span", f"{key} = {_short(value)}") for key, value in one.options.items() if value not in ("", [])], class_="chips"
        ),
        tag("div", [_counts(name, table) for name, table in tables], class_="grid"),
        [_samples(kind, shown) for kind, shown in one.samples.items()],
        _quarantine(one) if one.quarantine else "",
        class_="stage",
        open="" if is_open else None,
    )


def _counts(name: str, table: Mapping[str, int]) -> Markup:
    """A table of a tally: over numbers a histogram, over words the largest of them."""
    if numeric := _numeric(table):
        shown = charts.columns(numeric, name)
    else:
        shown = charts.bars(table)
    return tag("div", tag("h3", HEADINGS.get(name, name[:1].upper() + name[1:])), shown)


def _numeric(table: Mapping[str, int]) -> dict[int, int]:
    """{number: count} of a table whose keys are all whole numbers; else nothing."""
    stripped = {key.strip(): number for key, number in table.items()}
    return {int(key): number for key, number in stripped.items()} if all(k.isdecimal() and len(k) < 18 for k in stripped) else {}


def _samples(kind: str, shown: Sequence[Mapping]) -> Markup:
    return tag(
        "details", tag("summary", f"{len(shown)} sample{'s' * (len(shown) > 1)}: {kind}"), [_sample(one) for one in shown], class_="samples"
    )


def _sample(shown: Mapping) -> Markup:
    """Short things in a line, long ones as text."""
    values = {key: _short(value, 10_000) for key, value in shown.items()}
    brief = {key: value for key, value in values.items() if len(value) < 80 and "\n" not in value and "text" not in key}
    line = tag("p", " · ".join(f"{key} {value}" for key, value in brief.items()))
    longer = {key: value for key, value in values.items() if key not in brief}
    return tag(
        "div", line, [[tag("p", key) if len(longer) > 1 else "", tag("pre", value)] for key, value in longer.items()], class_="sample"
    )


def _quarantine(one: Ended) -> Markup:
    rows = [
        tag("div", tag("p", f"{e['where']}: {e['reason']}"), tag("pre", e["begins"]), class_="sample")
        for e in one.quarantine[:MOST_QUARANTINED]
    ]
    number = sum(one.counts.get(UNREADABLE, {}).values())
    where = f"{number:,} record{'s' * (number > 1)} could not be read; those named: {one.path / folder.QUARANTINE}"
    return tag("details", tag("summary", where, class_="bad"), rows, class_="samples")


def _short(value, most: int = 120) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= most else text[:most] + "…"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
