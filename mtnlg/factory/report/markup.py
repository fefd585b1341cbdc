"""HTML and SVG as text, put together so that whatever is not markup is escaped: the texts shown are hostile."""

import html

from mtnlg.factory.report.summary import printable


class Markup(str):
    """Text that is markup already."""


EMPTY = {"meta", "rect", "polygon"}


def tag(name: str, /, *children, **attributes) -> Markup:
    """An element; children: Markup, lists of children, and anything else as text. An attribute's name: class_ or font_size as in Python."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join([f"<{name}", *(f' {key}="{text(value)}"' for key, value in named.items())])
    return Markup(f"{opening}/>" if name in EMPTY else f"{opening}>{content(*children)}</{name}>")


def content(*children) -> Markup:
    return Markup("".join(content(*one) if isinstance(one, list) else one if isinstance(one, Markup) else text(one) for one in children))


def text(value) -> Markup:
    """Anything as text; characters that a browser would obey or refuse are shown as unknown ones."""
    lines = str(value).replace("\t", "    ").split("\n")
    return Markup(html.escape("\n".join(printable(line) for line in lines)))
