"""What of a model may be kept in eight bits, by the names that users give. No jax here."""

from collections.abc import Sequence

from mtnlg.core.errors import ConfigError

PARTS = ("weights", "cache")


def named(given: str | Sequence[str]) -> tuple[str, ...]:
    """Some of `PARTS`; a text has commas between them. Raises ConfigError for anything else."""
    found = tuple(part for part in given.split(",") if part) if isinstance(given, str) else tuple(given)
    if unknown := [part for part in found if part not in PARTS]:
        raise ConfigError(f"{unknown[0]!r} cannot be kept in eight bits", "int8", "int8=weights, int8=cache or int8=weights,cache")
    return found
