"""What is wrong with the texts of one source and not of others, by name: each is a function from text to text."""

import re
from collections.abc import Callable

CODE = "code"  # stands in place of the general repairs, which would harm it

_GUTENBERG_START = re.compile(
    r"\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^*]{0,300}\*{3}|\*END\* ?THE SMALL PRINT[^\n]{0,100}\*END\*", re.IGNORECASE
)
_GUTENBERG_END = re.compile(
    r"^[^\S\n]*(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the |this )?Project Gutenberg)", re.IGNORECASE | re.MULTILINE
)
_GUTENBERG_CREDITS = re.compile(r"\s*(?:Produced|E-text prepared|Etext prepared|Transcribed) by [^\n]*(?:\n[^\S\n]*\S[^\n]*)*")
_NEWS_FURNITURE = re.compile(
    r"^[^\S\n]*(?:advertisement|story continues below|continue reading|loading\.\.\.|read more|read also|click here|follow us on"
    r"|share this|sign up (?:for|to)|subscribe to|image copyright|image caption|media caption|photo credit|copyright|©"
    r"|all rights reserved)\b[^\n]{0,120}(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_BROKEN_LINE = re.compile(r"(?<=[\w,;])[^\S\n]?\n(?=[^\S\n]?[a-z])")
_LATEX_START = re.compile(r"\\begin\s?\{document\}")
_LATEX_END = re.compile(r"\\end\s?\{document\}")
_LATEX_BIBLIOGRAPHY = re.compile(r"\\begin\s?\{thebibliography\}|^[^\S\n]*\\bibliography\s?\{", re.MULTILINE)
_REFERENCES = re.compile(
    r"^[^\S\n]*(?:#{1,6} ?)?(?:\d{1,2}\.? )?(?:references|bibliography)[^\S\n]*+:?[^\S\n]*+$", re.IGNORECASE | re.MULTILINE
)
_APPENDIX = re.compile(r"^[^\S\n]*(?:\\appendix\b|#{1,6} ?append)", re.IGNORECASE | re.MULTILINE)
_OUTER_EMPTY_LINES = re.compile(r"\A\ufeff*(?:[^\S\n]*\n)*")


def gutenberg(text: str) -> str:
    """A book of Project Gutenberg without what stands before and behind it, and without the names of those who typed it."""
    for match in _GUTENBERG_START.finditer(text):
        text = text[match.end() :]
        break
    if match := _GUTENBERG_END.search(text):
        text = text[: match.start()]
    if match := _GUTENBERG_CREDITS.match(text):
        text = text[match.end() :]
    return text


def realnews(text: str) -> str:
    """Without lines that belong to a page and not to its article: advertisements, captions, "read more"."""
    return _NEWS_FURNITURE.sub("", text)


def stories(text: str) -> str:
    """Lines that were broken within a sentence are joined (Megatron-LM, tools/openwebtext, "general_cleaning", does so after any word)."""
    return _BROKEN_LINE.sub(" ", text)


def paper(text: str) -> str:
    """An article in LaTeX or Markdown without preamble and bibliography; an appendix behind the bibliography stays."""
    if match := _LATEX_START.search(text):
        text = text[match.end() :]
    if match := _LATEX_END.search(text):
        text = text[: match.start()]
    if match := _LATEX_BIBLIOGRAPHY.search(text) or _last(_REFERENCES, text):
        appendix = _APPENDIX.search(text, match.end())
        text = text[: match.start()] + (text[appendix.start() :] if appendix else "")
    return text


def code(text: str) -> str:
    """Line ends are one character, no byte order mark, no empty lines around; all else stays as it is."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _OUTER_EMPTY_LINES.sub("", text).rstrip()


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    """The last match in the second half of a text."""
    return max(pattern.finditer(text, len(text) // 2), key=re.Match.start, default=None)


FIXES: dict[str, Callable[[str], str]] = {
    "gutenberg": gutenberg,
    "realnews": realnews,
    "stories": stories,
    "paper": paper,
    CODE: code,
}
