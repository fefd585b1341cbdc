"""What a field of a request may hold: checks that return the value or raise a Refusal that names the field."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mtnlg.serve.refusal import bad

Check = Callable[[Any, str], Any]
REQUIRED = object()


class Field(NamedTuple):
    """A missing field, and null, is its default."""

    default: Any
    check: Check


def read(given: dict, fields: Mapping[str, Field], inside: str = "") -> dict:
    """Every field of the list, checked. inside: before the names in messages. Raises Refusal, also for a field that is not on the list."""
    for name in given:
        if name not in fields:
            shown = f"{inside}{name}"[:80]
            raise bad(f"there is no field `{shown}`", shown, "unknown_field")
    found = {}
    for name, (default, check) in fields.items():
        value = given.get(name)
        if value is None and default is REQUIRED:
            raise bad(f"`{inside}{name}` is required", f"{inside}{name}", "missing_field")
        found[name] = default if value is None else check(value, f"{inside}{name}")
    return found


def whole(low: int, high: int) -> Check:
    def check(value, name):
        if type(value) is not int or not low <= value <= high:
            raise bad(f"`{name}` must be an integer from {low} to {high}", name)
        return value

    return check


def number(low: float, high: float, above: bool = False) -> Check:
    """above: `low` itself is not allowed."""

    def check(value, name):
        if type(value) not in (int, float) or not low <= value <= high or (above and value == low):
            raise bad(f"`{name}` must be a number {'above' if above else 'from'} {low} to {high}", name)
        return float(value)

    return check


def boolean(value, name):
    if type(value) is not bool:
        raise bad(f"`{name}` must be true or false", name)
    return value


def text(most_chars: int | None = None, least_chars: int = 0) -> Check:
    def check(value, name):
        if not isinstance(value, str):
            raise bad(f"`{name}` must be a string", name)
        if len(value) < least_chars or (most_chars is not None and len(value) > most_chars):
            raise bad(f"`{name}` must have {least_chars} to {most_chars} characters", name)
        return value

    return check


def one_of(*words: str) -> Check:
    def check(value, name):
        if value not in words:
            raise bad(f"`{name}` must be one of {', '.join(words)}", name)
        return value

    return check


def items(check_item: Check, most: int, least: int = 1) -> Check:
    def check(value, name):
        if not isinstance(value, list):
            raise bad(f"`{name}` must be a list", name)
        if not least <= len(value) <= most:
            raise bad(f"`{name}` must have {least} to {most} items", name)
        return [check_item(item, f"{name}[{place}]") for place, item in enumerate(value)]

    return check


def part(fields: Mapping[str, Field]) -> Check:
    """An object with fields of its own."""

    def check(value, name):
        if not isinstance(value, dict):
            raise bad(f"`{name}` must be an object", name)
        return read(value, fields, f"{name}.")

    return check


def unsupported(value, name):
    raise bad(f"`{name}` is not supported here", name, "unsupported_field")
