"""Libraries that only some people need: imported where they are used, with one message where they are missing."""

import contextlib
from collections.abc import Iterator

from mtnlg.core.errors import ConfigError


@contextlib.contextmanager
def needed(extra: str) -> Iterator[None]:
    """Around an import of what `pip install -e '.[extra]'` in the project's folder brings. Raises ConfigError when it is not there."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"this needs a library that is not installed: {error.name}", extra, f"pip install -e '.[{extra}]' in the project's folder"
        ) from error
