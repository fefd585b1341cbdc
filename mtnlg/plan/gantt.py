"""A picture of pipeline schedules: a row for each stage, time along x, as the text of an SVG file.

Ops are horizontal strokes as thick as a row, in forwards of one block, which a transform makes pixels. Where they would be too narrow
to be told apart, those alike that touch are one stroke, without a number.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from xml.sax.saxutils import escape

from mtnlg.core import schema
from mtnlg.parallel import stages
from mtnlg.parallel.table import Op
from mtnlg.plan import timeline
from mtnlg.plan.text import size
from mtnlg.plan.timeline import Bar, Timeline

# Told apart by colour-blind eyes too, and in each other's shades: tests/plan/test_gantt.py measures it.
COLOURS = {Op.F: "#4d78d8", Op.R: "#099556", Op.B: "#f3a314", Op.W: "#761d64"}
MEANINGS = {Op.F: "forward", Op.R: "forward again", Op.B: "backward to the inputs", Op.W: "backward to the kernels"}
LIGHTEST = 0.4  # how much white is in the shade of the last chunk
INK, GREY, LINE = "#24292f", "#656d76", "#d0d7de"
MARGIN, LABEL, GAP = 24, 62, 14
COLUMNS = (("bubble", 58), ("in flight", 62), ("activations", 92))
NARROW = 5.0  # pixels, below which a bar has neither edges nor a number
MOST_BARS = 6000  # of a schedule, beyond which they are merged
MOST_COUNTS = 16  # of stages, whose layers are listed


def svg(config: schema.Config, panels: Sequence[tuple[str, Timeline | str]]) -> str:
    """The panels, (name of the schedule, its step or why there is none), below each other on one scale of time."""
    shown = [panel for _, panel in panels if isinstance(panel, Timeline)]
    longest, num_stages = max((one.makespan for one in shown), default=1.0), config.mesh.pipe
    width = min(max(1000, 2 * max((one.num_ticks for one in shown), default=0)), 2400)
    row = min(max(480 // num_stages, 12), 30)
    scale = width / longest
    parts, y = _header(config, shown), 96
    for number, (name, panel) in enumerate(panels):
        parts.append(f'<g class="panel" id="panel{number}">')
        if isinstance(panel, Timeline):
            parts += _panel(name, panel, y, row, width, scale)
            y += 44 + num_stages * row + GAP
        else:
            parts += [_text(MARGIN, y + 14, name, "name"), _text(_after(name), y + 14, f"not possible: {panel}", "grey")]
            y += 22 + GAP
        parts.append("</g>")
    parts += _axis(longest, scale, y) if shown else []
    right = MARGIN + LABEL + width + sum(wide for _, wide in COLUMNS) + MARGIN
    return "\n".join([_opening(right, y + 46, scale, shown), *parts, "</svg>"]) + "\n"


def _opening(width: int, height: int, scale: float, shown: list[Timeline]) -> str:
    most_chunks = max((one.num_chunks for one in shown), default=1)
    shades = [f".{op.name}{chunk}{{stroke:{shade(op, chunk, most_chunks)}}}" for op in COLOURS for chunk in range(most_chunks)]
    style = [
        "text{font-family:'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif;font-size:12px}",
        f".grey{{fill:{GREY}}}.ink{{fill:{INK}}}.name{{fill:{INK};font-weight:bold;font-size:14px}}",
        f".title{{fill:{INK};font-weight:bold;font-size:19px}}.dark{{fill:#fff;font-size:10.5px}}.light{{fill:{INK};font-size:10.5px}}",
        f".cut{{stroke:#fff;fill:none;stroke-width:{0.8 / scale:.4g}}}",
        *shades,
    ]
    hatch = (
        '<pattern id="idle" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<path d="M0 0h6v6h-6z" fill="#f3f4f6"/><path d="M0 0v6" stroke="#d3d7dc" stroke-width="2"/></pattern>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"<style>{''.join(style)}</style>\n<defs>{hatch}</defs>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
    )


def _header(config: schema.Config, shown: list[Timeline]) -> list[str]:
    """Title and legend."""
    facts = (
        f"one optimizer step: P = {config.mesh.pipe} stages, M = {timeline.counted(config)}, "
        f"{config.model.num_layers} layers, train.recompute={config.train.recompute}"
    )
    parts = [_text(MARGIN, 36, config.name, "title"), _text(MARGIN, 56, facts, "grey")]
    ops = [op for op in COLOURS if any((one.schedule.ops == op).any() for one in shown)]
    most_chunks, x = max((one.num_chunks for one in shown), default=1), MARGIN
    for op in ops:
        for chunk in range(most_chunks):
            parts.append(f'<path class="{op.name}{chunk}" stroke-width="14" d="M{x} 77h14"/>')
            x += 15
        label = f"{op.name}  {MEANINGS[op]}"
        parts.append(_text(x + 5, 81, label, "ink"))
        x += 5 + 7 * len(label) + 18
    parts += [f'<rect x="{x}" y="70" width="22" height="14" fill="url(#idle)"/>', _text(x + 28, 81, "idle", "ink")]
    if most_chunks > 1:
        parts.append(_text(x + 76, 81, f"shades: chunks 0 to {most_chunks - 1}", "grey"))
    return parts


def _panel(name: str, one: Timeline, y: int, row: int, width: int, scale: float) -> list[str]:
    left, top = MARGIN + LABEL, y + 40
    parts = [_text(MARGIN, y + 14, name, "name"), _text(_after(name), y + 14, summary(one), "grey")]
    parts.append(_text(left, y + 32, f"layers of each {_part_name(one)}: {_layers(one)}", "grey"))
    x = left + width
    for column, wide in COLUMNS:
        x += wide
        parts.append(_text(x, y + 32, column, "grey", "end"))
    span = one.makespan * scale
    merged = sum(map(len, one.bars)) > MOST_BARS or _narrowest(one) * scale < NARROW
    for stage, bars in enumerate(one.bars):
        middle = top + stage * row + row / 2
        text_y, thick = middle + 4, row - (2 if row > 16 else 1)
        parts.append(_text(left - 10, text_y, f"stage {stage}", "ink", "end"))
        parts.append(f'<rect x="{left}" y="{middle - thick / 2:g}" width="{span:.2f}" height="{thick}" fill="url(#idle)"/>')
        parts.append(f'<g class="stage" transform="translate({left} {middle:g}) scale({scale:.6g} 1)" stroke-width="{thick}">')
        parts += _merged(bars) if merged else _single(one, stage, bars, thick)
        parts.append("</g>")
        parts += [] if merged else _numbers(one, bars, left, text_y, scale)
        x = left + width
        for (_, wide), value in zip(COLUMNS, numbers_of_stage(one, stage), strict=True):
            x += wide
            parts.append(_text(x, text_y, value, "ink", "end"))
    parts.append(f'<path d="M{left + span:.2f} {top - 3}v{one.num_stages * row + 6}" stroke="{INK}"/>')
    return parts


def _single(one: Timeline, stage: int, bars: list[Bar], thick: int) -> list[str]:
    """Each op with its tooltip, and white edges between them."""
    parts = []
    for bar in bars:
        tip = f"{bar.op.name} of microbatch {bar.microbatch}, {_layers_of(one, stage, bar)}: {_number(bar.start)} to {_number(_end(bar))}"
        parts.append(f'<path class="{bar.op.name}{bar.chunk}" d="{_stroke(bar.start, bar.length)}"><title>{tip}</title></path>')
    cuts = "".join(f"M{_number(bar.start)} {-thick / 2:g}v{thick}" for bar in bars)
    return [*parts, f'<path class="cut" d="{cuts}"/>']


def _merged(bars: list[Bar]) -> list[str]:
    """One path for each op and chunk; what touches is one stroke."""
    strokes: dict[tuple[Op, int], list[list[float]]] = defaultdict(list)
    for bar in bars:
        alike = strokes[bar.op, bar.chunk]
        if alike and math.isclose(alike[-1][1], bar.start):
            alike[-1][1] = _end(bar)
        else:
            alike.append([bar.start, _end(bar)])
    return [
        f'<path class="{op.name}{chunk}" d="{"".join(_stroke(start, end - start) for start, end in spans)}"/>'
        for (op, chunk), spans in strokes.items()
    ]


def _numbers(one: Timeline, bars: list[Bar], left: int, y: float, scale: float) -> list[str]:
    """Microbatches, in the boxes that are wide enough: a line of text for dark boxes, one for light ones."""
    spans: dict[str, list[str]] = defaultdict(list)
    for bar in bars:
        if bar.length * scale >= 6.2 * len(str(bar.microbatch)) + 3:
            ink = "dark" if is_dark(shade(bar.op, bar.chunk, one.num_chunks)) else "light"
            spans[ink].append(f'<tspan x="{round(left + (bar.start + bar.length / 2) * scale, 1):g}">{bar.microbatch}</tspan>')
    return [f'<text y="{y:g}" class="{ink}" text-anchor="middle">{"".join(numbers)}</text>' for ink, numbers in spans.items()]


def _axis(longest: float, scale: float, y: int) -> list[str]:
    left = MARGIN + LABEL
    step = next(step for step in _round_numbers() if longest / step <= 12)
    marks = [step * n for n in range(int(longest / step) + 1)]
    parts = [f'<path d="M{left} {y}h{longest * scale:.2f}" stroke="{GREY}"/>']
    for x, mark in ((left + mark * scale, mark) for mark in marks):
        parts += [f'<path d="M{x:.2f} {y}v5" stroke="{GREY}"/>', _text(x, y + 18, f"{mark:g}", "grey", "middle")]
    note = "time, in forwards of one block; each tick lasts as long as its longest op, messages take no time"
    return [*parts, _text(left, y + 36, note, "grey")]


def summary(one: Timeline) -> str:
    """What a step is worth, in a line."""
    return (
        f"{one.num_ticks} ticks, makespan {one.makespan:,.1f}, ideal {one.ideal:,.1f} (the work of the busiest stage), "
        f"bubble {one.bubble.mean():.1%} on average, {size(one.reserved_bytes)} of activations reserved on each device"
    )


def numbers_of_stage(one: Timeline, stage: int) -> tuple[str, str, str]:
    """(bubble, microbatches in flight, bytes of activations used)."""
    return f"{one.bubble[stage]:.1%}", str(one.in_flight[stage]), size(one.used_bytes[stage])


def _part_name(one: Timeline) -> str:
    return "stage" if one.num_chunks == 1 else f"chunk, {one.num_chunks} a stage"


def _layers(one: Timeline) -> str:
    """Layers of each virtual stage in the model's order, or in short."""
    plan = stages.of(one.config)
    counts = plan.counts.ravel()[plan.placement.ravel().argsort()].tolist()
    if min(counts) == max(counts):
        return f"{counts[0]} each"
    return f"{min(counts)} to {max(counts)}" if len(counts) > MOST_COUNTS else ", ".join(map(str, counts))


def _layers_of(one: Timeline, stage: int, bar: Bar) -> str:
    plan = stages.of(one.config)
    held = plan.layers[stage, bar.chunk, : plan.counts[stage, bar.chunk]].tolist()
    with_head = " and head" if bar.op == Op.B and plan.placement[stage, bar.chunk] == plan.placement.max() else ""
    chunk = f"chunk {bar.chunk}, " if one.num_chunks > 1 else ""
    return chunk + (f"layers {held[0]} to {held[-1]}" if len(held) > 1 else f"layer {held[0]}" if held else "no layer") + with_head


def shade(op: Op, chunk: int, num_chunks: int) -> str:
    """An op's colour for one of so many chunks: the later, the lighter."""
    white = LIGHTEST * chunk / max(num_chunks - 1, 1)
    return "#" + "".join(f"{round(value + (255 - value) * white):02x}" for value in bytes.fromhex(COLOURS[op][1:]))


def is_dark(colour: str) -> bool:
    red, green, blue = bytes.fromhex(colour[1:])
    return 0.3 * red + 0.59 * green + 0.11 * blue < 140


def _narrowest(one: Timeline) -> float:
    return min(bar.length for bars in one.bars for bar in bars if bar.length)


def _after(name: str) -> int:
    """Where the text that follows a panel's name begins."""
    return MARGIN + 9 * len(name) + 18


def _stroke(start: float, length: float) -> str:
    return f"M{_number(start)} 0h{_number(length)}"


def _end(bar: Bar) -> float:
    return bar.start + bar.length


def _number(value: float) -> str:
    return f"{round(value, 4):.10g}"


def _round_numbers():
    """1, 2, 5, 10, 20, ..."""
    return (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    side = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{round(x, 1):g}" y="{y:g}" class="{kind}"{side}>{escape(text)}</text>'
