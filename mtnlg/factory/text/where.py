"""Conditions on the fields of a document, as text: FIELD=VALUE, FIELD<NUMBER, FIELD>NUMBER."""

import re
from dataclasses import dataclass

from mtnlg.core.errors import ConfigError

_CONDITION = re.compile(r"([^=<>]+)([=<>])(.*)", re.DOTALL)
_MISSING = object()


@dataclass(frozen=True)
class Condition:
    field: str
    relation: str
    value: str

    def holds(self, document: dict) -> bool:
        """Of a list, whether it holds for one of its items; never where the field is missing."""
        found = self._found(document)
        return any(map(self._holds_for, found if isinstance(found, list) else [found]))

    def is_missing(self, document: dict) -> bool:
        return self._found(document) is _MISSING

    def __str__(self) -> str:
        return f"{self.field}{self.relation}{self.value}"

    def _found(self, document: dict):
        found = document
        for name in self.field.split("."):
            if not isinstance(found, dict) or name not in found:
                return _MISSING
            found = found[name]
        return found

    def _holds_for(self, found) -> bool:
        if isinstance(found, bool) or found is None:
            found = {True: "true", False: "false", None: "null"}[found]
        if isinstance(found, str):
            return self.relation == "=" and found == self.value
        if not isinstance(found, int | float) or (number := _number(self.value)) is None:
            return False
        return found == number if self.relation == "=" else found < number if self.relation == "<" else found > number


def parse(text: str) -> Condition:
    """FIELD may go down into objects: meta.set=ArXiv. Raises ConfigError."""
    match = _CONDITION.fullmatch(text)
    if not match:
        raise ConfigError(f"where={text!r} is no condition", "where", "FIELD=VALUE, FIELD<NUMBER or FIELD>NUMBER")
    condition = Condition(match[1].strip(), match[2], match[3].strip())
    if condition.relation != "=" and _number(condition.value) is None:
        raise ConfigError(f"where={text!r} compares with what is no number", "where", f"{condition.field}{condition.relation}0.5")
    return condition


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
