"""From a page to its text: trafilatura's rules (Barbaresi, ACL 2021 demos), or those of jusText (Pomikálek, PhD thesis, Brno 2011)."""

import codecs
import functools
import importlib.util
import logging
import re
from collections.abc import Callable

from mtnlg.core import extras
from mtnlg.core.errors import ConfigError
from mtnlg.factory.documents import Unreadable
from mtnlg.factory.raw.sandbox import Sandbox

RULES = ("trafilatura", "justext")
MAX_TAGS = 60_000  # what a parser takes seconds for
_META = re.compile(rb"""<meta[^<>]{0,200}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_SNIFFED_BYTES = 1024  # where the HTML standard looks for a charset
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_CHARSETS = re.compile(
    r"utf-8|utf-16(-[lb]e)?|ascii|cp\d+|iso8859-\d+|koi8-[rut]|gb2312|gbk|gb18030|big5(hkscs)?|euc_(jp|kr)|cp949|shift_jis|iso2022_jp"
    r"|mac-(roman|cyrillic)|tis-620|johab"
)
_MEANT = {"ascii": "cp1252", "iso8859-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "iso8859-9": "cp1254"}


def decoded(content: bytes, charset: str = "") -> str:
    """A page as text, by its byte order mark, the charset that its server named, its <meta>, or else as UTF-8 or Windows-1252.

    Labels mean what the WHATWG's Encoding Standard says; bytes that do not fit become U+FFFD.
    """
    for mark, name in _BOMS:
        if content.startswith(mark):
            return content[len(mark) :].decode(name, "replace")
    found = _META.search(content, 0, _SNIFFED_BYTES)
    for label in (charset, found[1].decode() if found else ""):
        if name := _charset(label):
            return content.decode(name, "replace")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _charset(label: str) -> str:
    """The codec that a label means; nothing for one that is unknown, or is no charset of the web."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        return ""
    return _MEANT.get(name, name) if _CHARSETS.fullmatch(name) else ""


def check(rule: str, stopwords: str) -> None:
    """Raises ConfigError when the rule's library is missing, or jusText knows no such language."""
    with extras.needed("data"):
        if importlib.util.find_spec(rule) is None:
            raise ImportError(name=rule)
    if rule == "justext" and stopwords:
        import justext

        if stopwords not in justext.get_stoplists():
            raise ConfigError(
                f"stopwords={stopwords!r} is no language of jusText", "--stopwords", ", ".join(sorted(justext.get_stoplists()))
            )


class TextOf:
    """The text of a page, or nothing where there is none. stopwords: a language of jusText's lists; none: it does without."""

    def __init__(self, rule: str, stopwords: str):
        check(rule, stopwords)
        self._sandbox = Sandbox(_trafilatura if rule == "trafilatura" else functools.partial(_justext, stopwords))

    def __call__(self, page: str) -> str:
        """Raises Unreadable for a page that is too much for a parser."""
        if page.count("<") > MAX_TAGS:
            raise Unreadable(f"more than {MAX_TAGS} tags")
        return self._sandbox(page.replace("\0", "")) if page.strip() else ""


def _trafilatura() -> Callable[[str], str]:
    import trafilatura

    logging.disable(logging.CRITICAL)
    return lambda page: trafilatura.extract(page, include_comments=False) or ""


def _justext(stopwords: str) -> Callable[[str], str]:
    import justext
    from justext import core

    from mtnlg.factory.raw import boilerplate

    words = justext.get_stoplist(stopwords) if stopwords else frozenset()
    shares = {} if stopwords else {"stopwords_low": 0, "stopwords_high": 0}

    def text_of(page: str) -> str:
        paragraphs = core.ParagraphMaker.make_paragraphs(core.preprocessor(core.html_to_dom(page)))
        core.classify_paragraphs(paragraphs, words, **shares)
        boilerplate.revise(paragraphs)
        return "\n".join(paragraph.text for paragraph in paragraphs if not paragraph.is_boilerplate)

    return text_of
