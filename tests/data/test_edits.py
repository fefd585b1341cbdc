"""A change of weights in mid-run: earlier draws stay, no source skips or repeats a sample, and a checkpoint knows all of it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import ConfigError, DataError
from mtnlg.data import edits as edit_lists
from mtnlg.data.blend import Blend
from mtnlg.data.edits import Edit, EditedBlend

PERIOD = 64
WEIGHTS = st.lists(st.floats(0.5, 10), min_size=3, max_size=3).map(tuple)
EDITS = st.lists(st.tuples(st.integers(1, 300), WEIGHTS), max_size=4, unique_by=lambda edit: edit[0]).map(sorted)


def slow(edits, num_samples):
    """[(source, index)], drawn one after the other with a counter for each source."""
    counters, drawn = [0] * len(edits[0].weights), []
    for number in range(num_samples):
        edit = [edit for edit in edits if edit.first <= number][-1]
        source = int(Blend(edit.weights, PERIOD).locate(np.array([number - edit.first]))[0][0])
        drawn.append((source, counters[source]))
        counters[source] += 1
    return drawn


@settings(max_examples=40, deadline=None)
@given(first=WEIGHTS, later=EDITS)
def test_it_is_what_a_counter_for_each_source_gives(first, later):
    edits = [Edit(0, first), *(Edit(*edit) for edit in later)]
    blend, expected = EditedBlend(edits, PERIOD), slow(edits, 400)
    source, index = blend.locate(np.arange(400))
    assert list(zip(source.tolist(), index.tolist(), strict=True)) == expected
    for num_samples in (0, 1, 137, 300, 400):
        assert blend.drawn(num_samples).tolist() == np.bincount([s for s, _ in expected[:num_samples]], minlength=3).tolist()


@given(numbers=st.lists(st.integers(0, 10**12), min_size=1))
def test_a_sample_hangs_on_its_number_alone(numbers):
    """However the numbers are dealt out over processes."""
    blend = EditedBlend([Edit(0, (3.0, 1.0)), Edit(1000, (1.0, 3.0))])
    together = np.stack(blend.locate(np.array(numbers)), axis=1)
    assert together.tolist() == [np.concatenate(blend.locate(np.array([n]))).tolist() for n in numbers]


def test_without_edits_it_is_the_blend():
    numbers = np.arange(40000)
    assert np.array_equal(EditedBlend([Edit(0, (5.0, 2.0))]).locate(numbers), Blend((5.0, 2.0)).locate(numbers))


def test_going_on():
    start = edit_lists.go_on((), 0, (0.7, 0.3), "feistel")
    assert start == (Edit(0, (0.7, 0.3)),)
    assert edit_lists.go_on(start, 0, (0.5, 0.5), "megatron") == (Edit(0, (0.5, 0.5)),)  # nothing was drawn yet
    assert edit_lists.go_on(start, 80, (0.7, 0.3), "megatron") == start
    assert edit_lists.go_on(start, 80, (7, 3), "feistel") == start  # the same draws
    edited = edit_lists.go_on(start, 80, (0.5, 0.5), "feistel")
    assert edited == (*start, Edit(80, (0.5, 0.5)))
    assert edit_lists.go_on(edited, 80, (0.7, 0.3), "feistel") == start  # taken back before anything was drawn
    assert edit_lists.go_on(edited, 90, (0.7, 0.3), "feistel") == (*edited, Edit(90, (0.7, 0.3)))


def test_megatrons_order_cannot_be_edited():
    with pytest.raises(ConfigError, match=r"changed at sample 80.*Try: --config\.data\.weights=0\.7,0\.3; "):
        edit_lists.go_on((Edit(0, (0.7, 0.3)),), 80, (0.5, 0.5), "megatron")


def test_a_checkpoint_keeps_them_by_name():
    edits = (Edit(0, (0.7, 0.3)), Edit(80, (1e-17, 1 / 3)))
    kept = json.loads(json.dumps(edit_lists.to_json(edits, ["a", "b"])))
    assert kept[0] == {"sample": 0, "weights": {"a": 0.7, "b": 0.3}}
    assert edit_lists.from_json(kept, ["a", "b"], "run/checkpoints/3") == edits
    for names in (["b", "a"], ["a"], ["a", "b", "c"]):
        with pytest.raises(DataError, match=r"drawn from a, b, .*--config\.init\.from=run/checkpoints/3"):
            edit_lists.from_json(kept, names, "run/checkpoints/3")
