"""What is left of each source on its way through a graph, stage by stage."""

from collections.abc import Mapping, Sequence

from mtnlg.factory.report.charts import Level
from mtnlg.factory.report.summary import BYTES, TOKENS, Ended


def grouped(ended: Sequence[Ended]) -> list[tuple[str, list[Ended]]]:
    """(label, stages) in order: nodes as far from the beginning of the graph as each other, with the same stage, are one level."""
    depths: dict[str, int] = {}
    for one in ended:
        depths[one.name] = 1 + max((depths[name] for name in one.inputs if name in depths), default=0)
    levels: dict[tuple[int, str], list[Ended]] = {}
    for one in sorted(ended, key=lambda one: depths[one.name]):
        levels.setdefault((depths[one.name], one.stage), []).append(one)
    return [(own[0].name if len(own) == 1 else f"{stage} ({len(own)} folders)", own) for (_, stage), own in levels.items()]


def counted(ended: Sequence[Ended], unit: str) -> list[Level]:
    """What was read at first and written at each level, by source. A source that passes a level by is what it was.

    Stages that only learn from documents are no levels.
    """
    groups, left, found = grouped([one for one in ended if not one.is_aside]), {}, []
    for place, (label, own) in enumerate(groups):
        read, written = (_sum([one.by_source(unit, side) for one in own]) for side in ("read", "written"))
        fresh = {source: number for source, number in read.items() if source not in left}
        left |= fresh
        if place == 0:
            found.append(Level("as it was read", dict(left)))
        left |= {source: 0 for source in read} | written
        found.append(Level(label, {source: number for source, number in left.items() if number}))
    return found


def tokens(ended: Sequence[Ended]) -> list[Level]:
    """As `counted`, in tokens: those that were counted, and before them an estimate from the bytes. Nothing where none were counted."""
    rates = tokens_per_byte(ended)
    if not rates:
        return []
    whole = sum(sum(one.by_source(TOKENS, "written").values()) for one in ended) / _read_where_counted(ended)
    found = []
    counted_at = {label: _sum([one.by_source(TOKENS, "written") for one in own]) for label, own in grouped(ended)}
    for level in counted(ended, BYTES):
        exact = counted_at.get(level.label, {})
        guess = {source: number * rates.get(source, whole) for source, number in level.parts.items()}
        found.append(Level(level.label, exact or guess, is_guess=not exact))
    return found


def tokens_per_byte(ended: Sequence[Ended]) -> dict[str, float]:
    """By source, of the stages that counted tokens."""
    found: dict[str, float] = {}
    for one in ended:
        for source, number in one.by_source(TOKENS, "written").items():
            if num_bytes := one.by_source(BYTES, "read").get(source):
                found[source] = number / num_bytes
    return found


def _read_where_counted(ended: Sequence[Ended]) -> int:
    return sum(one.total(BYTES, "read") for one in ended if one.by_source(TOKENS, "written")) or 1


def _sum(tables: list[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for table in tables:
        for key, number in table.items():
            found[key] = found.get(key, 0) + number
    return found
