import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import DataError
from mtnlg.data.blend import Blend

WEIGHTS = st.lists(st.floats(0.5, 10), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS)
@example(weights=[100.0] + [1.0] * 100)  # where sorting by (k + 1/2) / n strays by 25 draws
def test_running_counts_stray_less_than_one_draw(weights):
    period = 2048
    blend = Blend(weights, period)
    source, _ = blend.locate(np.arange(2 * period))
    counts = np.cumsum(source[:, None] == np.arange(len(weights)), axis=0)
    ideal = np.arange(1, 2 * period + 1)[:, None] * blend.counts / period
    assert np.abs(counts - ideal).max() < 1
    assert np.array_equal(counts[period - 1], blend.counts)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS, first=st.integers(0, 10**12))
def test_index_counts_up_in_each_source(weights, first):
    blend = Blend(weights, 512)
    source, index = blend.locate(first + np.arange(1500))
    for number in range(len(weights)):
        assert (np.diff(index[source == number]) == 1).all()
    before = blend.drawn(first)
    assert before.sum() == first
    for number, start in enumerate(before):
        assert index[source == number][:1].tolist() in ([], [start])


def test_draws_are_apportioned_by_largest_remainder():
    assert Blend([1, 1, 1], 100).counts.tolist() == [34, 33, 33]
    assert Blend([0.5, 0.3, 0.2], 10).counts.tolist() == [5, 3, 2]
    assert Blend([5.4, 3.3, 1.3], 10).counts.tolist() == [6, 3, 1]  # remainders .4 .3 .3


def test_a_hand_made_pattern():
    source, index = Blend([3, 1], 4).locate(np.arange(8))
    assert source.tolist() == [0, 0, 0, 1] * 2  # each draw of 0 is due before the one of 1, whose deadline is the fourth
    assert index[source == 0].tolist() == [0, 1, 2, 3, 4, 5] and index[source == 1].tolist() == [0, 1]


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], []])
def test_weights_that_are_not_positive_are_refused(weights):
    with pytest.raises(DataError, match=r"data\.weights\)\. Try: leaving out"):
        Blend(weights)


def test_a_weight_below_one_draw_is_refused():
    with pytest.raises(DataError, match=r"weight 1 of source 1 is less than one draw in 1000 .*Try: a larger weight"):
        Blend([10**7, 1], 1000)
