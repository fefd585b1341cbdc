"""Which checkpoints are kept: the last, the multiples and the best, and no other."""

from hypothesis import given
from hypothesis import strategies as st

from mtnlg.core.keeping import kept

LOSSES = st.dictionaries(st.integers(0, 60), st.none() | st.floats(0, 9), max_size=20)


@given(LOSSES, st.integers(1, 5), st.integers(0, 10), st.integers(0, 4))
def test_nothing_else_is_kept(losses, last, every, best):
    found = kept(losses, last, every, best)
    assert found <= losses.keys()
    newest = set(sorted(losses)[-last:])
    multiples = {step for step in losses if every and step % every == 0}
    rest = found - newest - multiples
    assert newest | multiples <= found and len(rest) <= best
    known = {step: loss for step, loss in losses.items() if loss is not None}
    assert rest <= known.keys()
    worse = [loss for step, loss in known.items() if step not in found]
    assert all(known[step] <= loss for step in rest for loss in worse)
    assert len(found & known.keys()) >= min(best, len(known))


@given(LOSSES, st.integers(1, 5), st.integers(0, 10), st.integers(0, 4), st.floats(0, 9))
def test_what_was_deleted_is_never_missed(losses, last, every, best, loss):
    """Deleting at each save keeps what deciding at the end would have kept."""
    after = max(losses, default=0) + 1
    remaining = {step: losses[step] for step in kept(losses, last, every, best)}
    assert kept(remaining | {after: loss}, last, every, best) == kept(losses | {after: loss}, last, every, best)


def test_of_equal_losses_the_earlier_is_kept():
    assert kept({1: 2.0, 2: 2.0, 3: 3.0, 4: None}, 1, 0, 1) == {1, 4}
    assert kept({1: 2.0, 2: 2.0, 3: 3.0, 4: None}, 1, 2, 0) == {2, 4}
