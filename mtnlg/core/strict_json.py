"""JSON of which nothing is guessed: UTF-8, one object, no name twice, no NaN or Infinity, no half characters."""

import json
import math


class NotStrict(ValueError):
    """What is wrong, after a subject: "is not JSON"."""


def read(content: bytes) -> dict:
    """The object that the bytes are. Raises NotStrict."""
    try:
        text = content.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except NotStrict:
        raise
    except UnicodeError:
        raise NotStrict("is not UTF-8, or has half of a surrogate pair") from None
    except RecursionError:
        raise NotStrict("is JSON that is nested too deeply") from None
    except ValueError:  # also a whole number of more digits than Python reads
        raise NotStrict("is not JSON") from None
    if not isinstance(value, dict):
        raise NotStrict("must be a JSON object")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise NotStrict("has a name twice in one object")
    return value


def _no_constant(name: str):
    raise NotStrict(f"has {name} in it, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotStrict("has a number in it that is too large")
    return value
