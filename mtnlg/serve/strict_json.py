"""JSON of which nothing is guessed: UTF-8, one object, no name twice, no NaN or Infinity, no half characters."""

import json
import math

from mtnlg.serve.refusal import Refusal, bad


def read(body: bytes) -> dict:
    """The object that a request's body is. Raises Refusal."""
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise bad("the body is not UTF-8, or has half of a surrogate pair", code="invalid_json") from None
    except RecursionError:
        raise bad("the body's JSON is nested too deeply", code="invalid_json") from None
    except ValueError:  # also a whole number of more digits than Python reads
        raise bad("the body is not JSON", code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad("the body must be a JSON object", code="invalid_json")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise bad("the body has a name twice in one object", code="invalid_json")
    return value


def _no_constant(name: str) -> Refusal:
    raise bad(f"{name} is not JSON", code="invalid_json")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise bad("a number is too large", code="invalid_json")
    return value
