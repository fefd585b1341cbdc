"""What is cut from a prompt: exactly what does not fit, where the policy says, and told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.core.errors import ConfigError
from mtnlg.infer.truncate import POLICIES, Cut, fit

SHORT = st.integers(0, 30)


@given(length=SHORT, room=SHORT, policy=st.sampled_from(POLICIES), keep=SHORT)
def test_what_remains_is_the_rest(length, room, policy, keep):
    """It fills the room, begins with what is kept, and the cut says what is gone."""
    ids = list(range(length))
    if length <= room:
        assert fit(ids, room, policy, keep) == (ids, None)
    elif policy == "error" or keep >= room:
        with pytest.raises(ConfigError, match=f"there is room for {room}"):
            fit(ids, room, policy, keep)
    else:
        kept, cut = fit(ids, room, policy, keep)
        assert len(kept) == room and kept == ids[: cut.begin] + ids[cut.end :] and kept[:keep] == ids[:keep]
        assert cut.begin == keep if policy == "left" else cut.begin == max(keep, room // 2)


def test_by_hand():
    ids = list("abcdefgh")
    assert fit(ids, 4, "left") == (list("efgh"), Cut(0, 4))
    assert fit(ids, 4, "left", keep=1) == (list("afgh"), Cut(1, 5))
    assert fit(ids, 4, "middle") == (list("abgh"), Cut(2, 6))
    assert fit(ids, 4, "middle", keep=3) == (list("abch"), Cut(3, 7))
    with pytest.raises(ConfigError, match="8 tokens, and there is room for 4"):
        fit(ids, 4)
    with pytest.raises(ConfigError, match="keep=-1 is out of range"):
        fit(ids, 6, "left", keep=-1)
