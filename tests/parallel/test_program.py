"""A schedule as slots: an executor of tagged values finds in every slot what its op should get."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.parallel import program, schedule
from mtnlg.parallel.schedule import Op

MAKERS = {
    "gpipe": schedule.gpipe,
    "1f1b": schedule.one_f_one_b,
    "zero_bubble": lambda p, m, recompute: schedule.zero_bubble(p, m, None, recompute),
    "zero_bubble 2P-1": lambda p, m, recompute: schedule.zero_bubble(p, m, 2 * p - 1, recompute),
    "interleaved": lambda p, m, recompute: schedule.interleaved(p, -(-m // p) * p, 2 + m % 2, recompute),
    "zb_v": schedule.zb_v,
}


@st.composite
def tables(draw):
    maker = MAKERS[draw(st.sampled_from(sorted(MAKERS)))]
    return maker(draw(st.integers(1, 7)), draw(st.integers(1, 20)), draw(st.booleans()))


def execute(compiled: program.Program, num_virtual_stages: int, recomputes: bool) -> list:
    """Runs a program on tags, checks what every op reads, and returns the ops done, as (op, microbatch, virtual stage)."""
    num_stages, last, done = compiled.op.shape[1], num_virtual_stages - 1, []
    mailbox, kept, deferred = ([[None] * (size + 1) for _ in range(num_stages)] for size in compiled.sizes)
    for row in zip(*compiled[:10], strict=True):
        messages = [None] * num_stages
        for stage, (op, m, _, v, mail, _, _, _, keep, defer) in enumerate(zip(*(column.tolist() for column in row), strict=True)):
            reads_mail = v > 0 if op in (Op.F, Op.R) else op == Op.B
            keeps, defers = op in (Op.R if recomputes else Op.F, Op.B), op in (Op.B, Op.W)
            assert (mail < compiled.num_mail, keep < compiled.num_kept, defer < compiled.num_deferred) == (reads_mail, keeps, defers)
            if op == Op.IDLE:
                assert (m, v) == (0, 0)
                continue
            done.append((op, m, v))
            if op in (Op.F, Op.R):
                assert v == 0 or mailbox[stage][mail] == ("activation", m, v - 1)
                if keeps:
                    kept[stage][keep] = ("kept", m, v)
                messages[stage] = ("activation", m, v)
            if op == Op.B:
                assert mailbox[stage][mail] == (("activation", m, last) if v == last else ("cotangent", m, v + 1))
                assert kept[stage][keep] == ("kept", m, v)
                deferred[stage][defer] = ("deferred", m, v)
                messages[stage] = ("cotangent", m, v)
            if op == Op.W:
                assert deferred[stage][defer] == ("deferred", m, v)
        _, _, _, _, _, from_previous, from_next, from_self, _, _ = row
        for stage in range(num_stages):
            mailbox[stage][from_previous[stage]] = messages[(stage - 1) % num_stages]
            mailbox[stage][from_next[stage]] = messages[(stage + 1) % num_stages]
            mailbox[stage][from_self[stage]] = messages[stage]
    return done


def all_of(table) -> list:
    ops = (Op.F, Op.R, Op.B, Op.W) if table.recomputes else (Op.F, Op.B, Op.W)
    return sorted((op, m, v) for op in ops for m in range(table.microbatches.max() + 1) for v in range(table.placement.size))


@given(tables())
def test_every_op_gets_what_it_needs(table):
    compiled = program.compile(table)
    assert sorted(execute(compiled, table.placement.size, table.recomputes)) == all_of(table)
    assert all(array.dtype == np.int32 and array.shape == table.ops.shape for array in compiled[:10])


@given(tables(), st.tuples(*[st.integers(0, 3)] * 3), st.integers(0, 5))
def test_larger_rings_and_more_ticks(table, more, idle):
    least = program.compile(table)
    sizes = tuple(size + extra for size, extra in zip(least.sizes, more, strict=True))
    padded = program.pad(program.compile(table, sizes), len(table.ops) + idle)
    assert padded.sizes == sizes and {array.shape for array in padded[:10]} == {(len(table.ops) + idle, len(table.placement))}
    assert sorted(execute(padded, table.placement.size, table.recomputes)) == all_of(table)


@given(tables(), st.data())
def test_the_executor_notices_a_wrong_slot(table, data):
    """Negative control: a read or a write in another slot than the program says."""
    compiled = program.compile(table)
    field, ring = data.draw(st.sampled_from([*program._RING_OF.items()]))
    column, size = getattr(compiled, field).copy(), getattr(compiled, f"num_{ring}")
    used = np.argwhere(column < size).tolist()
    if used:
        tick, stage = data.draw(st.sampled_from(used))
        column[tick, stage] = data.draw(st.sampled_from([slot for slot in range(size + 1) if slot != column[tick, stage]]))
        with pytest.raises(AssertionError):
            execute(compiled._replace(**{field: column}), table.placement.size, table.recomputes)


@given(tables())
def test_rings_are_as_small_as_can_be(table):
    """As many slots as values live at once: from F or R to B, from B to W."""
    compiled = program.compile(table)
    count = {op: np.cumsum(table.ops == op, axis=0) for op in Op}
    first = Op.R if table.recomputes else Op.F
    assert compiled.num_kept == (count[first] - count[Op.B] + (table.ops == Op.B)).max()
    assert compiled.num_deferred == (count[Op.B] - count[Op.W] + (table.ops == Op.W)).max()


@pytest.mark.parametrize(
    ("table", "sizes"),
    [
        (schedule.one_f_one_b(35, 240), (2, 35, 1)),
        (schedule.one_f_one_b(35, 240, True), (35, 1, 1)),
        (schedule.zero_bubble(35, 240), (2, 35, 12)),
        (schedule.zero_bubble(35, 240, None, True), (35, 1, 12)),
        (schedule.zero_bubble(35, 240, 35), (2, 35, 35)),
    ],
)
def test_mt_nlg(table, sizes):
    assert program.compile(table).sizes == sizes


def test_a_ramp_shares_its_rings():
    tables = [schedule.zero_bubble(4, num_microbatches) for num_microbatches in (1, 2, 8)]
    sizes = program.common_sizes(map(program.compile, tables))
    assert sizes == program.compile(tables[-1]).sizes
    shapes = {program.pad(program.compile(table, sizes), len(tables[-1].ops)).mail.shape for table in tables}
    assert shapes == {tables[-1].ops.shape}


def test_rings_too_small():
    with pytest.raises(AssertionError, match="slots are needed"):
        program.compile(schedule.one_f_one_b(4, 8), (2, 3, 1))


def test_two_stages_have_one_way():
    compiled = program.compile(schedule.one_f_one_b(2, 4))
    assert (compiled.from_next == compiled.num_mail).all() and (compiled.from_previous < compiled.num_mail).any()
