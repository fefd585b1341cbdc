"""Ranges of whole numbers, as people write them."""

from typing import NamedTuple


class Range(NamedTuple):
    """From `first` up to, and without, `end`."""

    first: int
    end: int

    def __str__(self) -> str:
        return f"{self.first}:{self.end}"


def parse(text: str) -> Range:
    """`FIRST:END`. Raises ValueError."""
    first, _, end = text.partition(":")
    if not first.isdecimal() or not end.isdecimal() or int(first) >= int(end):
        raise ValueError(f"{text!r} is no range FIRST:END")
    return Range(int(first), int(end))
