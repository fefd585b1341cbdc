import pytest

from mtnlg.core import extras
from mtnlg.core.errors import ConfigError


def test_what_is_missing_is_named_with_the_command_that_brings_it():
    line = r"not installed: no_such_library \(data\)\. Try: pip install -e '\.\[data\]'"
    with pytest.raises(ConfigError, match=line), extras.needed("data"):
        import no_such_library  # noqa: F401


def test_what_is_there_is_imported():
    with extras.needed("data"):
        import json
    assert json.loads("1") == 1
