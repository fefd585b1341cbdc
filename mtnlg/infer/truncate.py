"""Prompts that are longer than the room for them: what is cut out is told, never silent. Ids only."""

from collections.abc import Sequence
from typing import NamedTuple

from mtnlg.core.errors import ConfigError

POLICIES = ("error", "left", "middle")


class Cut(NamedTuple):
    """ids[begin:end] of a prompt are not read."""

    begin: int
    end: int


def check_policy(policy: str, keep: int | None) -> None:
    """keep None: nobody has said. Raises ConfigError: an unknown policy, or something to keep where nothing is cut."""
    if policy not in POLICIES:
        raise ConfigError(f"truncate={policy!r} is not one of {', '.join(POLICIES)}", "truncate", "truncate=left or truncate=middle")
    if policy == "error" and keep is not None:
        raise ConfigError(f"keep={keep} keeps nothing where nothing is cut", "keep", "truncate=left or truncate=middle beside it")


def fit(ids: Sequence[int], room: int, policy: str = "error", keep: int = 0) -> tuple[list[int], Cut | None]:
    """At most `room` of the ids, and what was cut out; None: nothing.

    policy: "left" takes away what follows the first `keep` ids, "middle" what follows the first half of the room (or the first `keep`, if
    they are more). Raises ConfigError: too many with policy "error", no room for more than the ids kept, or fewer than none to keep.
    """
    if keep < 0:
        raise ConfigError(f"keep={keep} is out of range", "keep", "0 or more")
    excess = len(ids) - room
    if excess <= 0:
        return list(ids), None
    if policy == "error":
        raise ConfigError(f"the prompt has {len(ids)} tokens, and there is room for {room}", "prompt", "a shorter prompt")
    if keep >= room:
        raise ConfigError(f"the first {keep} tokens are to be kept, and there is room for {room}", "keep", "fewer tokens to keep")
    begin = keep if policy == "left" else max(keep, room // 2)
    return [*ids[:begin], *ids[begin + excess :]], Cut(begin, begin + excess)
