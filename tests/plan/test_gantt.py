"""Pictures of schedules: the bars are read back, and they are the schedule."""

import dataclasses
import itertools
import re
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import lockstep, stages
from mtnlg.parallel.table import Op
from mtnlg.plan import gantt, gantt_text, timeline

MODEL = schema.Model(num_layers=10, d_model=32, num_heads=4, vocab_size=64, vocab_multiple=64, seq_len=8)
CONFIG = schema.Config(model=MODEL, train=schema.Train(batch_size=8, microbatch_size=1), mesh=schema.Mesh(pipe=4))
LARGEST = "--config=configs/mtnlg_530b.py"


def of(name: str, recompute: str = "full", config: schema.Config = CONFIG) -> timeline.Timeline:
    pipeline, train = schema.Pipeline(schedule=name), dataclasses.replace(config.train, recompute=recompute)
    return timeline.of(dataclasses.replace(config, pipeline=pipeline, train=train))


def draw(*steps: timeline.Timeline) -> str:
    return gantt.svg(steps[0].config, [(step.config.pipeline.schedule, step) for step in steps])


def groups(node, kind: str):
    return [group for group in node.iter("{http://www.w3.org/2000/svg}g") if group.get("class") == kind]


def read_back(svg: str) -> list[list[list[tuple[str, float, float]]]]:
    """For each panel and stage the strokes (op and chunk, start, end), in the order of time."""
    panels = []
    for panel in groups(ElementTree.fromstring(svg), "panel"):
        rows = []
        for stage in groups(panel, "stage"):
            found = []
            for path in stage:
                kind = path.get("class")
                if kind != "cut":
                    pairs = re.findall(r"M([\d.e+-]+) 0h([\d.e+-]+)", path.get("d"))
                    found += [(kind, float(start), float(start) + float(length)) for start, length in pairs]
            rows.append(sorted(found, key=lambda bar: bar[1:]))
        panels.append(rows)
    return panels


def problems(rows: list, one: timeline.Timeline) -> list[str]:
    """What of a panel is not as the schedule has it."""
    table, costs = one.schedule, stages.costs(one.config)
    makespan, found = lockstep.makespan(table, costs), []
    for stage, bars in enumerate(rows):
        if any(after[1] < before[2] - 1e-3 for before, after in itertools.pairwise(bars)):
            found.append(f"stage {stage}: bars overlap")
        busy = sum(end - start for _, start, end in bars)
        if busy / makespan + lockstep.bubble(table, costs)[stage] != pytest.approx(1, abs=1e-4):
            found.append(f"stage {stage}: its bars do not leave its bubble")
        for op, chunk in itertools.product((Op.F, Op.R, Op.B, Op.W), range(one.num_chunks)):
            drawn = sum(end - start for kind, start, end in bars if kind == f"{op.name}{chunk}")
            times = ((table.ops[:, stage] == op) & (table.chunks[:, stage] == chunk)).sum()
            if drawn != pytest.approx(times * costs[stage, chunk, op], rel=1e-3, abs=1e-3):
                found.append(f"stage {stage}: {op.name} of chunk {chunk} lasts {drawn}")
    if max(end for bars in rows for _, _, end in bars) != pytest.approx(makespan, rel=1e-6):
        found.append("the last bar does not end with the step")
    return found


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("name", schema.SCHEDULES)
def test_the_bars_are_the_schedule(name, recompute):
    one = of(name, recompute)
    ((*rows,),) = read_back(draw(one))
    assert len(rows) == 4 and problems(rows, one) == []
    assert sum(map(len, rows)) == (one.schedule.ops != Op.IDLE).sum()


def test_a_bar_that_is_moved_or_stretched_or_missing_is_found():
    """Negative control of the test above."""
    one = of("1f1b")
    ((*rows,),) = read_back(draw(one))
    (kind, start, end), *rest = rows[1]
    assert problems([rows[0], [(kind, start + 1, end + 1), *rest], *rows[2:]], one) == ["stage 1: bars overlap"]
    assert len(problems([rows[0], [(kind, start, end - 1), *rest], *rows[2:]], one)) == 2
    assert len(problems([rows[0], rest, *rows[2:]], one)) == 2
    assert problems(rows, of("gpipe", "none")) != []


def test_a_tick_lasts_as_long_as_its_longest_op():
    """The head makes the last B longer; the others wait for it."""
    one = of("1f1b")
    costs = one.costs
    assert costs[3, 0, Op.B] > costs[3, 0, Op.F] == costs[3, 0, Op.W]
    starts = {}
    for bar in itertools.chain(*one.bars):
        starts.setdefault(bar.start, []).append(bar.length)
    assert len(starts) == one.num_ticks
    assert sum(max(lengths) for lengths in starts.values()) == pytest.approx(one.makespan)
    assert one.ideal == pytest.approx(max(sum(bar.length for bar in bars) for bars in one.bars))


def texts_of(svg: str, kind: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}" + kind)]


def test_microbatches_stand_in_boxes_with_room():
    one = of("1f1b")
    assert sorted(map(int, texts_of(draw(one), "tspan"))) == sorted(bar.microbatch for bars in one.bars for bar in bars)
    assert 0 < len(texts_of(draw(of("interleaved")), "tspan")) < 4 * 8 * 2 * 4


def test_tooltips_and_what_stands_beside():
    one = of("interleaved")
    svg = draw(one)
    tips, texts = texts_of(svg, "title"), texts_of(svg, "text")
    assert len(tips) == 4 * 8 * 2 * 4
    assert tips[0] == "F of microbatch 0, chunk 0, layer 0: 0 to 1"
    assert tips[-1].startswith("W of microbatch 7, chunk 0, layers 3 to 4: ")
    assert any(re.fullmatch(r"B of microbatch 7, chunk 1, layer 9 and head: .*", tip) for tip in tips)
    for stage in range(4):
        at = texts.index(f"stage {stage}")
        beside = [text for text in texts[at + 1 :] if text][:3]
        assert beside == list(gantt.numbers_of_stage(one, stage))
        assert beside[:2] == [f"{one.bubble[stage]:.1%}", str(one.in_flight[stage])]
    assert gantt.summary(one) in texts and "layers of each chunk, 2 a stage: 1, 1, 1, 2, 1, 1, 2, 1" in texts


def test_several_schedules_on_one_scale_of_time():
    steps = [of(name) for name in schema.SCHEDULES]
    svg = gantt.svg(CONFIG, [*((step.config.pipeline.schedule, step) for step in steps), ("own.csv", "a < b & c")])
    *panels, refused = read_back(svg)
    assert [problems(rows, step) for rows, step in zip(panels, steps, strict=True)] == [[]] * 5 and refused == []
    scales = {group.get("transform").partition("scale")[2] for group in groups(ElementTree.fromstring(svg), "stage")}
    assert len(scales) == 1 and "not possible: a &lt; b &amp; c" in svg


@pytest.fixture(scope="module")
def largest():
    start = time.perf_counter()
    one = timeline.of(configs.resolve([LARGEST]))
    return one, draw(one), time.perf_counter() - start


def test_the_largest_model(largest):
    one, svg, secs = largest
    assert (one.num_stages, one.num_microbatches) == (35, 240)
    assert secs < 10 and len(svg) < 1_000_000
    ((*rows,),) = read_back(svg)
    assert problems(rows, one) == [] and "<title>" not in svg and "<tspan" not in svg


def linear(colour: str) -> np.ndarray:
    value = np.array([*bytes.fromhex(colour[1:])]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of linear sRGB, white D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / (0.9505, 1, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado et al. 2009, severity 1.
EYES = {
    "normal": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def nearest(colours: list[str], eye: str) -> float:
    seen = [lab(EYES[eye] @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("eye", EYES)
def test_colours_are_told_apart(eye):
    """Both shades of all ops; a distance of 2.3 is just seen."""
    assert nearest([gantt.shade(op, chunk, 2) for op in gantt.COLOURS for chunk in (0, 1)], eye) > 15


def test_red_and_green_would_not_do():
    """Negative control."""
    assert nearest(["#d62728", "#2ca02c"], "deutan") < 15 < nearest(["#d62728", "#2ca02c"], "normal")


@pytest.mark.parametrize("name", schema.SCHEDULES)
def test_slots_of_the_stages(name):
    """The most that a stage uses is what all reserve; no stage keeps more inputs than are in flight."""
    one = of(name, "none")
    assert tuple(one.slots.max(axis=0)) == one.program.sizes
    assert (one.slots[:, 1] <= one.in_flight).all() and (one.slots[:, 2] <= one.in_flight).all()
    assert max(one.used_bytes) <= one.reserved_bytes
    assert one.num_messages == {"interleaved": 7, "zb_v": 6}.get(name, 3) * 2 * 8


def test_text():
    one = of("zb_v")
    head, *rows = gantt_text.text(one, 1000, False).splitlines()[:5]
    assert head == "unnamed, zb_v: " + gantt.summary(one)
    for stage, row in enumerate(rows):
        letters = row[len("stage 0  ") :]
        assert len(letters) == one.num_ticks
        for op, chunk in itertools.product((Op.F, Op.R, Op.B, Op.W), (0, 1)):
            times = ((one.schedule.ops[:, stage] == op) & (one.schedule.chunks[:, stage] == chunk)).sum()
            assert letters.count(op.name.lower() if chunk else op.name) == times
    coloured = gantt_text.text(one, 1000, True)
    assert "\x1b[" in coloured and re.sub(r"\x1b\[[\d;]*m", "", coloured) == gantt_text.text(one, 1000, False)


@pytest.mark.parametrize("width", [10, 80, 81, 1036, 1037])
def test_text_is_as_wide_as_the_terminal(largest, width):
    lines = gantt_text.text(largest[0], width, False).splitlines()
    rows = lines[1:36]
    room = max(width - len("stage 0  "), gantt_text.LEAST)
    assert {len(row) for row in rows} == {len("stage 0  ") + min(room, 1028)}
    note = re.search(r"ticks (\d+) to (\d+) of 0 to 1027 are not shown", "\n".join(lines))
    assert (note is None) == (width == 1037)
    if note:
        left, _, right = rows[0][len("stage 0  ") :].partition(" ... ")
        assert (len(left), 1027 - len(right)) == (int(note[1]), int(note[2]))
        assert left == "F" * 34 or len(left) != 34


def test_without_stages_there_is_nothing_to_draw():
    with pytest.raises(ConfigError, match=r"mesh.pipe=1 has no stages.*Try: --config.mesh.pipe=4"):
        timeline.of(dataclasses.replace(CONFIG, mesh=schema.Mesh()))
