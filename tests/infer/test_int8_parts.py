"""Names of what is kept in eight bits."""

import pytest

from mtnlg.core.errors import ConfigError
from mtnlg.infer import int8_parts


@pytest.mark.parametrize(
    ("given", "found"),
    [("", ()), ((), ()), ("weights", ("weights",)), ("weights,cache", ("weights", "cache")), (["cache"], ("cache",))],
)
def test_a_text_or_several(given, found):
    assert int8_parts.named(given) == found


@pytest.mark.parametrize("given", ["both", ["both"], "weights,both", "weight"])
def test_others_are_refused_by_what_was_given(given):
    with pytest.raises(ConfigError, match="'(both|weight)' cannot be kept in eight bits"):
        int8_parts.named(given)
