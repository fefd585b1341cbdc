"""The part of a `tokenizer.json` that says what stands before a text."""

from typing import Any


def before(ids: dict[str, int]) -> dict[str, Any]:
    """A post-processor that puts these special tokens before a text, and before each of two."""
    marks = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ids]
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {token: {"id": token, "ids": [id], "tokens": [token]} for token, id in ids.items()}
    return {"type": "TemplateProcessing", "single": [*marks, first], "pair": [*marks, first, *marks, second], "special_tokens": special}
