"""Which language a document is written in, by lingua's n-gram models, from a few stretches of its text."""

from collections.abc import Callable

from mtnlg.core import extras

FIELD = "language"
UNKNOWN = "und"  # ISO 639-2: undetermined
MAX_CHARS = 400  # that are looked at, however long a text is
_STRETCHES = 4


def detector() -> Callable[[str], str]:
    """A function that gives a text's ISO 639-1 code in lower case, or UNKNOWN. All 75 languages of lingua, about 100 MB.

    With lingua's models of trigrams alone ("low accuracy"): those of one to five letters take 900 MB in every worker.
    Raises ConfigError when lingua is not installed.
    """
    with extras.needed("data"):
        from lingua import LanguageDetectorBuilder

    detect = LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build().detect_language_of

    def code(text: str) -> str:
        found = detect(stretches(text))
        return found.iso_code_639_1.name.lower() if found else UNKNOWN

    return code


def codes() -> frozenset[str]:
    """Every code that a detector may give, but UNKNOWN. Raises ConfigError when lingua is not installed."""
    with extras.needed("data"):
        from lingua import Language

    return frozenset(language.iso_code_639_1.name.lower() for language in Language.all())


def stretches(text: str) -> str:
    """A text of at most MAX_CHARS as it is; of a longer one stretches of equal length, the first and the last at its ends."""
    if len(text) <= MAX_CHARS:
        return text
    length = MAX_CHARS // _STRETCHES
    starts = (number * (len(text) - length) // (_STRETCHES - 1) for number in range(_STRETCHES))
    return "\n".join(text[start : start + length] for start in starts)
