"""Schedules by name: all that is made can be run, and each keeps what its paper says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import lockstep, schedule
from mtnlg.parallel.schedule import Op


def ticks(table) -> float:
    """The makespan with F = R = B = W = 1."""
    return lockstep.makespan(table, np.ones((*table.placement.shape, len(Op))))


@st.composite
def settings(draw):
    """(pipeline, P, M, recompute), M a multiple of P where it has to be."""
    name = draw(st.sampled_from(schema.SCHEDULES))
    num_stages, num_microbatches = draw(st.integers(1, 9)), draw(st.integers(1, 24))
    if name == "interleaved":
        num_microbatches = num_stages * draw(st.integers(1, 4))
    pipeline = schema.Pipeline(schedule=name, chunks=draw(st.integers(1, 4)), in_flight=draw(st.none() | st.integers(1, 12)))
    return pipeline, num_stages, num_microbatches, draw(st.booleans())


@given(settings())
def test_what_is_made_can_be_run(setting):
    pipeline, num_stages, num_microbatches, recompute = setting
    table = schedule.make(*setting)
    assert lockstep.problems(table, num_microbatches, recompute) == []
    num_chunks = {"interleaved": pipeline.chunks, "zb_v": 2}.get(pipeline.schedule, 1)
    assert table.placement.shape == (num_stages, num_chunks)
    ops_a_microbatch = num_chunks * (4 if recompute else 3)
    np.testing.assert_array_equal((table.ops != Op.IDLE).sum(axis=0), num_microbatches * ops_a_microbatch)
    assert all(array.dtype == np.int32 for array in (*table, table.virtual_stages))
    assert (table.ops != Op.IDLE).any(axis=1).all()  # somebody works in every tick


@given(settings())
def test_gradients_are_summed_in_the_order_of_the_microbatches(setting):
    """So that all schedules give the same bits."""
    table = schedule.make(*setting)
    for op in (Op.B, Op.W):
        for stage, chunks in enumerate(table.placement):
            for chunk in range(len(chunks)):
                here = (table.ops[:, stage] == op) & (table.chunks[:, stage] == chunk)
                assert table.microbatches[here, stage].tolist() == list(range(setting[2]))


@given(st.integers(1, 40), st.integers(1, 60))
def test_1f1b_and_gpipe(num_stages, num_microbatches):
    table = schedule.one_f_one_b(num_stages, num_microbatches)
    assert ticks(table) == 3 * num_microbatches + 2 * (num_stages - 1) <= 3 * (num_microbatches + num_stages - 1)
    assert (lockstep.in_flight(table) == np.minimum(num_stages - np.arange(num_stages), num_microbatches)).all()
    first = table.ops[:, 0][table.ops[:, 0] != Op.IDLE]
    warm_up = min(num_stages - 1, num_microbatches)
    steady = [Op.F, Op.B, Op.W] * (num_microbatches - warm_up)
    assert first.tolist() == [Op.F] * warm_up + steady + [Op.B, Op.W] * warm_up
    everything_first = schedule.gpipe(num_stages, num_microbatches)
    assert ticks(everything_first) == ticks(table)
    assert (lockstep.in_flight(everything_first) == num_microbatches).all()


@pytest.mark.parametrize("num_stages", [*range(1, 17), 24, 35])
def test_zero_bubble(num_stages):
    num_microbatches = 8 * num_stages
    ideal = 3 * num_microbatches + num_stages - 1
    table = schedule.zero_bubble(num_stages, num_microbatches)
    assert ticks(table) <= 1.03 * ideal and lockstep.in_flight(table).max() <= num_stages
    assert ticks(table) <= ticks(schedule.one_f_one_b(num_stages, num_microbatches))
    table = schedule.zero_bubble(num_stages, num_microbatches, 2 * num_stages - 1)
    assert ticks(table) == ideal and lockstep.in_flight(table).max() <= 2 * num_stages - 1


@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 20), st.booleans())
def test_zero_bubble_keeps_its_limit(num_stages, num_microbatches, in_flight, recompute):
    table = schedule.zero_bubble(num_stages, num_microbatches, in_flight, recompute)
    assert lockstep.in_flight(table).max() <= in_flight


@given(st.integers(1, 9), st.integers(1, 8), st.integers(1, 4))
def test_interleaved(num_stages, num_groups, num_chunks):
    num_microbatches = num_groups * num_stages
    table = schedule.interleaved(num_stages, num_microbatches, num_chunks)
    assert ticks(table) <= 3 * (num_microbatches * num_chunks + num_stages - 1)
    assert lockstep.bubble(table, np.ones((num_stages, num_chunks, len(Op)))).max() <= (num_stages - 1) / (num_chunks * num_microbatches)
    warm_up = 2 * (num_stages - 1 - np.arange(num_stages)) + (num_chunks - 1) * num_stages
    assert (lockstep.in_flight(table) <= warm_up + 1).all()


@given(st.integers(1, 12), st.integers(0, 20), st.booleans())
def test_zb_v_has_no_bubble(num_stages, more, recompute):
    num_microbatches = 2 * num_stages - 1 + more
    table = schedule.zb_v(num_stages, num_microbatches, recompute)
    assert lockstep.idle_between(table).tolist() == [0] * num_stages
    assert ticks(table) == 2 * (4 if recompute else 3) * num_microbatches + num_stages - 1
    assert (lockstep.in_flight(table) == 2 * num_stages).all()


@given(settings())
def test_activations_computed_again_live_shortly(setting):
    """One at a time between R and B, and a backward chain that waits for R no more than a tick a microbatch."""
    pipeline, num_stages, num_microbatches, _ = setting
    table = schedule.make(pipeline, num_stages, num_microbatches, True)
    begun, used = (np.cumsum(table.ops == op, axis=0) for op in (Op.R, Op.B))
    assert (begun - used).max() == 1
    without = schedule.make(pipeline, num_stages, num_microbatches, False)
    assert ticks(table) <= ticks(without) + num_microbatches * table.placement.shape[1] + 2 * num_stages


def test_mt_nlg():
    """35 stages and 240 microbatches, as on 280 nodes (Smith et al. 2022, arXiv 2201.11990)."""
    assert ticks(schedule.one_f_one_b(35, 240)) == 788
    assert ticks(schedule.zero_bubble(35, 240)) == 777
    assert ticks(schedule.zero_bubble(35, 240, 35)) == 765
    assert ticks(schedule.zero_bubble(35, 240, 69)) == 3 * 240 + 34 == 754
    assert ticks(schedule.one_f_one_b(35, 240, True)) == 1028
    assert ticks(schedule.zero_bubble(35, 240, 35, True)) == 1005


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ({"schedule": "1f1"}, r"pipeline.schedule=1f1 is none of gpipe, 1f1b, .* or FILE.csv .*Try: --config.pipeline.schedule=1f1b"),
        ({"schedule": "interleaved"}, "needs a multiple of mesh.pipe=4 microbatches, and there are 6 .*Try: a batch of 8 micro"),
        ({"schedule": "interleaved", "chunks": 0}, "pipeline.chunks=0 must be at least 1 .*Try: --config.pipeline.chunks=2"),
        ({"schedule": "zero_bubble", "in_flight": 0}, "pipeline.in_flight=0 must be at least 1 .*Try: --config.pipeline.in_flight=4"),
    ],
)
def test_what_cannot_be_made(pipeline, message):
    with pytest.raises(ConfigError, match=message):
        schedule.make(schema.Pipeline(**pipeline), 4, 6, False)
