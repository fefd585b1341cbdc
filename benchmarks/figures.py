"""A table of figures: each with its target, what was measured, and whether it was reached."""

import sys
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple


class Figure(NamedTuple):
    """One line of the table."""

    target: str
    measured: str
    passed: bool


def measured(number: int, measure: Callable[[], Figure]) -> Figure:
    """A figure whose measurement fails is missed, and the others are measured nevertheless."""
    begin = time.monotonic()
    try:
        figure = measure()
    except Exception as error:
        traceback.print_exc()
        figure = Figure("to be measured", f"{type(error).__name__}: {error}", False)
    print(f"figure {number}: {'reached' if figure.passed else 'MISSED'} ({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)
    return figure


def print_table(found: dict[int, Figure]) -> int:
    """Prints it, by number; 1 if a figure was missed, else 0: an exit code."""
    print("| figure | target | measured | reached |\n|---|---|---|---|")
    for number, (target, told, passed) in sorted(found.items()):
        print(f"| {number} | {target} | {told} | {'yes' if passed else 'NO'} |")
    return 0 if all(figure.passed for figure in found.values()) else 1
