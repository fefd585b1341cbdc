"""Pipeline schedules for a terminal or a log: a row for each stage, a letter for each tick."""

from mtnlg.parallel.table import Op
from mtnlg.plan import gantt
from mtnlg.plan.text import table
from mtnlg.plan.timeline import Timeline

IDLE, CUT = ".", " ... "
LEAST = 20  # letters of a row, however narrow the terminal


def text(one: Timeline, width: int, colour: bool) -> str:
    """The step in lines of `width` letters; of a longer one the beginning and the end. Upper case: even chunks, lower case: odd ones."""
    room = max(width - len(_label(one.num_stages - 1)), LEAST)
    shown, note = _shown(one.num_ticks, room)
    lines = [f"{one.config.name}, {one.config.pipeline.schedule}: {gantt.summary(one)}"]
    lines += [
        _label(stage) + "".join(CUT if tick is None else _letter(one, tick, stage, colour) for tick in shown)
        for stage in range(one.num_stages)
    ]
    lines += [_legend(one), *note, ""]
    heads = ("", *(name for name, _ in gantt.COLUMNS))
    rows = [(f"stage {stage}", *gantt.numbers_of_stage(one, stage)) for stage in range(one.num_stages)]
    return "\n".join([*lines, *table([heads, *rows], "<>>>")])


def _shown(num_ticks: int, room: int) -> tuple[list[int | None], list[str]]:
    """(ticks to show, None where some are left out; a line that says which)."""
    if num_ticks <= room:
        return list(range(num_ticks)), []
    first = (room - len(CUT) + 1) // 2
    last = num_ticks - (room - len(CUT) - first)
    return [*range(first), None, *range(last, num_ticks)], [f"ticks {first} to {last - 1} of 0 to {num_ticks - 1} are not shown"]


def _letter(one: Timeline, tick: int, stage: int, colour: bool) -> str:
    op, chunk = Op(one.schedule.ops[tick, stage]), int(one.schedule.chunks[tick, stage])
    if op == Op.IDLE:
        return IDLE
    letter = op.name.lower() if chunk % 2 else op.name
    if not colour:
        return letter
    shade = gantt.shade(op, chunk, one.num_chunks)
    back, ink = (";".join(map(str, bytes.fromhex(c[1:]))) for c in (shade, "#ffffff" if gantt.is_dark(shade) else gantt.INK))
    return f"\x1b[48;2;{back};38;2;{ink}m{letter}\x1b[0m"


def _legend(one: Timeline) -> str:
    meanings = ", ".join(f"{op.name} {meaning}" for op, meaning in gantt.MEANINGS.items() if (one.schedule.ops == op).any())
    return f"a letter a tick: {meanings}, {IDLE} idle" + ("; lower case: odd chunks" if one.num_chunks > 1 else "")


def _label(stage: int) -> str:
    return f"stage {stage:<3}"
