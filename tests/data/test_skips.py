"""Skipped draws: what is consumed is the order without them, and what was consumed cannot be skipped any more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.core import ranges
from mtnlg.core.errors import ConfigError
from mtnlg.core.ranges import Range
from mtnlg.data import skips
from mtnlg.data.edits import Edit, EditedBlend
from mtnlg.data.skips import Skips

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda pair: Range(pair[0], sum(pair))), max_size=6)


@given(RANGES)
def test_samples_are_the_draws_that_are_left(ranges):
    left = [draw for draw in range(300) if not any(one.first <= draw < one.end for one in ranges)]
    np.testing.assert_array_equal(Skips(ranges).draws(np.arange(len(left))), left)


@given(RANGES)
def test_they_are_kept_as_text(ranges):
    assert skips.from_json(skips.to_json(Skips(ranges))).ranges == Skips(ranges).ranges


@pytest.mark.parametrize("text", ["", "5", "5:5", "7:3", "-1:4", "a:b", "1:2:3", "1.0:2"])
def test_what_is_no_range(text):
    with pytest.raises(ValueError, match="no range FIRST:END"):
        ranges.parse(text)


@given(RANGES, RANGES, st.integers(0, 80))
def test_going_on_never_changes_what_was_consumed(known, wanted, samples):
    known = Skips(known)
    consumed = known.draws(np.arange(samples))
    try:
        after = skips.go_on(known, wanted, samples)
    except ConfigError:
        new = {draw for one in wanted for draw in range(*one)}
        assert new & set(consumed.tolist()), "only what is consumed cannot be skipped"
        return
    np.testing.assert_array_equal(after.draws(np.arange(samples)), consumed)
    left = set(after.draws(np.arange(samples, samples + 200)).tolist())
    assert not left & {draw for one in wanted for draw in range(*one)}, "what is wanted is skipped from there on"


def test_a_range_in_the_past_is_refused_with_a_range_that_would_do():
    with pytest.raises(ConfigError, match=r"samples from 8 on cannot be left out any more: the run is at 14.*skip_ranges=14:20"):
        skips.go_on(Skips([Range(2, 4)]), [Range(8, 20)], 12)


@given(RANGES, st.integers(0, 120))
def test_a_blend_counts_what_is_read(ranges, num_samples):
    """Over a change of weights too."""
    edits = (Edit(0, (3.0, 1.0)), Edit(25, (1.0, 1.0)))
    whole, blend = EditedBlend(edits), EditedBlend(edits, skips=Skips(ranges))
    sources, indices = blend.locate(np.arange(num_samples))
    draws = Skips(ranges).draws(np.arange(num_samples))
    for found, expected in zip((sources, indices), whole.locate(draws), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(blend.drawn(num_samples), np.bincount(sources, minlength=2))
