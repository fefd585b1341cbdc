"""The judge of schedules: it finds what is broken, and its times are those of a clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.parallel import lockstep, schedule
from mtnlg.parallel.schedule import Op, Schedule
from mtnlg.parallel.table import needed

RECOMPUTE = st.booleans()


def example(recompute: bool) -> Schedule:
    return schedule.interleaved(3, 6, 2, recompute)


@given(RECOMPUTE, st.data())
def test_an_op_before_its_input(recompute, data):
    """Two rows change places, of which the later one needs the earlier one."""
    table = example(recompute)
    when = {task: (tick, stage) for tick, stage, task in table.tasks()}
    task = data.draw(st.sampled_from([task for task in when if needed(*task, 5, recompute)]))
    other = data.draw(st.sampled_from(needed(*task, 5, recompute)))
    order = np.arange(len(table.ops))
    (late, stage), (early, _) = when[task], when[other]
    order[[late, early]] = early, late
    lines = lockstep.problems(Schedule(*(array[order] for array in table[:3]), table.placement), 6, recompute)
    assert f"tick {early}, stage {stage}: {lockstep._name(*task)} needs {lockstep._name(*other)}, which is done in tick {late}" in lines


@given(RECOMPUTE, st.data())
def test_an_op_that_is_missing(recompute, data):
    table = example(recompute)
    tick, stage, task = data.draw(st.sampled_from([*table.tasks()]))
    ops = table.ops.copy()
    ops[tick, stage] = Op.IDLE
    assert lockstep.problems(table._replace(ops=ops), 6, recompute) == [f"stage {stage}: {lockstep._name(*task)} is missing"]


@given(RECOMPUTE, st.data())
def test_an_op_done_twice(recompute, data):
    """A row once more, at the end."""
    table = example(recompute)
    again = data.draw(st.integers(0, len(table.ops) - 1))
    doubled = Schedule(*(np.append(array, array[again][None], axis=0) for array in table[:3]), table.placement)
    lines = lockstep.problems(doubled, 6, recompute)
    there = [(stage, lockstep._name(*task)) for tick, stage, task in table.tasks() if tick == again]
    assert lines == [f"tick {len(table.ops)}, stage {stage}: {name} is done a second time" for stage, name in there]


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("ops", 5, "tick 0, stage 0: op 5 is not in 0 to 4"),
        ("microbatches", -1, "tick 0, stage 0: microbatch -1 is not in 0 to 5"),
        ("chunks", 2, "tick 0, stage 0: chunk 2 is not in 0 to 1"),
    ],
)
def test_ids_out_of_range(name, value, line):
    array = getattr(example(False), name).copy()
    array[0, 0] = value
    assert lockstep.problems(example(False)._replace(**{name: array}), 6, False) == [line]


def test_wrong_placements():
    table = schedule.one_f_one_b(4, 4)
    held_twice = table._replace(placement=np.array([[0], [1], [1], [3]], np.int32))
    (line,) = lockstep.problems(held_twice, 4, False)
    assert "each of 0 to 3 must be held once" in line
    far = table._replace(placement=np.array([[0], [2], [1], [3]], np.int32))
    assert lockstep.problems(far, 4, False)[0] == "virtual stages 0 and 1 lie on stages 0 and 2, which are no neighbours in a ring of 4"


def test_the_forward_again_only_where_it_is_wanted():
    assert lockstep.problems(schedule.gpipe(2, 1), 1, True) == [
        "stage 0: R of microbatch 0 on virtual stage 0 is missing",
        "stage 1: R of microbatch 0 on virtual stage 1 is missing",
    ]
    lines = lockstep.problems(schedule.gpipe(2, 1, True), 1, False)
    assert len(lines) == 2 and all("no R is needed" in line for line in lines)


def test_another_number_of_microbatches():
    assert "tick 0, stage 0" not in "".join(lockstep.problems(schedule.gpipe(2, 3), 4, False))
    assert len(lockstep.problems(schedule.gpipe(2, 3), 4, False)) == 6  # F, B, W of microbatch 3 on two stages
    assert "microbatch 2 is not in 0 to 1" in lockstep.problems(schedule.gpipe(2, 3), 2, False)[0]


TABLES = [
    schedule.gpipe(3, 4),
    schedule.one_f_one_b(4, 7, True),
    schedule.zero_bubble(5, 9),
    schedule.interleaved(3, 6, 3),
    schedule.zb_v(4, 8, True),
]


@given(st.sampled_from(TABLES), st.integers(0, 2**32 - 1))
def test_times(table, seed):
    costs = np.random.default_rng(seed).uniform(0.1, 2, (*table.placement.shape, len(Op)))
    span, bubble = lockstep.makespan(table, costs), lockstep.bubble(table, costs)
    # By hand: a tick at a time.
    work, by_hand = np.zeros(len(table.placement)), 0.0
    for row in zip(table.ops, table.chunks, strict=True):
        secs = [costs[stage, chunk, op] if op else 0.0 for stage, (op, chunk) in enumerate(zip(*row, strict=True))]
        work, by_hand = work + secs, by_hand + max(secs)
    np.testing.assert_allclose(span, by_hand)
    np.testing.assert_allclose((1 - bubble) * span, work)
    free = lockstep.asynchronous_makespan(table, costs)
    assert work.max() <= free * (1 + 1e-12) and free <= span * (1 + 1e-12)
    np.testing.assert_allclose(lockstep.asynchronous_makespan(table, 3 * costs), 3 * free)
    ones = np.ones_like(costs)
    assert lockstep.makespan(table, ones) == len(table.ops) == lockstep.asynchronous_makespan(table, ones)


def test_lockstep_costs_what_asynchrony_would_not():
    """F beside W in one tick, 1 and 3 long: the tick lasts 3."""
    costs = np.ones((4, 1, len(Op)))
    costs[..., Op.W] = 3
    table = schedule.one_f_one_b(4, 16)
    assert lockstep.asynchronous_makespan(table, costs) < lockstep.makespan(table, costs)


def test_what_is_held_and_idle():
    """Two stages, one microbatch: F, F, B, B with W beside or behind."""
    table = schedule.gpipe(2, 1)
    assert table.ops.T.tolist() == [[Op.F, 0, 0, Op.B, Op.W], [0, Op.F, Op.B, Op.W, 0]]
    assert lockstep.in_flight(table).tolist() == [1, 1]
    assert lockstep.idle_between(table).tolist() == [2, 0]
    # The last tick of W still counts.
    table = schedule.zero_bubble(1, 3, 2)
    assert table.ops[:, 0].tolist()[:3] == [Op.F, Op.B, Op.F] and lockstep.in_flight(table).tolist() == [2]
