"""What a terminal is shown of a text that a model wrote."""

# Weights may come from a stranger: what would steer a terminal is shown as unknown characters.
_SHOWN = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def shown(text: str) -> str:
    """The text, harmless."""
    return text.translate(_SHOWN)
