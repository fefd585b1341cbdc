"""Repairs text, and leaves out what is too short to be one (MT-NLG, arXiv 2201.11990, section 3: ftfy, lengths, "javascript")."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mtnlg.core import extras
from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import key
from mtnlg.factory import registry, stage
from mtnlg.factory.documents import Drop
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import OTHERS, Tally
from mtnlg.factory.text import fixes

SPACES = "white space"  # a kind of change
EVERY = "all"  # in place of the name of a source
MAX_ROUNDS = 4  # one repair may uncover what another mends: until nothing changes
_NOT_PLAIN = re.compile(r"[^\t\n -%'-~]")  # where nothing of this is, ftfy has nothing to mend
_NOT_PLAIN_LINE = re.compile(r"^[\t -%'-~]*[^\t\n -%'-~].*\n?", re.MULTILINE)
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_BLANKS = re.compile("[ \t\u3000]{2,}|[\t\u3000]")
_SPACES = re.compile(r"[^\S\n]+")
_LINE_END = re.compile(r" ?\n ?")
_EMPTY_LINES = re.compile(r"\n{3,}")

Repair = Callable[[str], str]


@dataclass(frozen=True)
class Clean:
    """Repairs encodings (ftfy), joins runs of spaces and of empty lines, mends what is wrong with a source, leaves out short texts."""

    min_chars: int = key(512, "shorter texts are left out")
    javascript_chars: int = key(256, "texts with the word javascript that are shorter than this are left out")
    fixes: tuple[str, ...] = key((), f"SOURCE:NAME or {EVERY}:NAME, with a name of {', '.join(fixes.FIXES)}")

    def check(self) -> None:
        """Raises ConfigError."""
        for number in ("min_chars", "javascript_chars"):
            if getattr(self, number) < 0:
                raise ConfigError(f"{number}={getattr(self, number)} is below 0", "stage clean", f"{number}=0")
        for fix in self.fixes:
            source, _, name = fix.rpartition(":")
            if not source:
                raise ConfigError(f"fixes={fix!r} names no source", "stage clean", f"fixes={EVERY}:{name}")
            if name not in fixes.FIXES:
                what = f"fixes={fix!r}: there is no fix {name!r}"
                raise ConfigError(what, "stage clean", registry.nearest(name, fixes.FIXES))

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        tally = stage.run(output, "clean", self, Inputs(inputs), self.step, machine)
        came = tally.counts.get("documents read", ())
        for source in dict.fromkeys(fix.rpartition(":")[0] for fix in self.fixes):
            if source != EVERY and source not in came and OTHERS not in came:
                machine.say(f"fixes: no document came from the source {source!r}")
        return tally

    def step(self) -> stage.Step:
        return _Step(self)


class _Step:
    def __init__(self, options: Clean):
        self._options, self._encoding = options, _encoding()
        self._of_source: dict[str, _Repairs] = {}

    def __call__(self, document: dict, tally: Tally) -> list[dict] | Drop:
        repairs = self._repairs(document["source"])
        text = repairs(document["text"])
        if len(text) < self._options.javascript_chars and "javascript" in text.lower():
            return Drop("javascript")
        if len(text) < self._options.min_chars:
            return Drop("too short")
        for kind in repairs.changed:
            tally.count("changed", kind)
        return [document | {"text": text}]

    def _repairs(self, source: str) -> "_Repairs":
        if source not in self._of_source:
            pairs = [fix.rpartition(":")[::2] for fix in self._options.fixes]
            own = {name: fixes.FIXES[name] for whose, name in pairs if whose in (EVERY, source)}
            general = ({}, {}, {}) if fixes.CODE in own else ({SPACES: _blanks}, {"encoding": self._encoding}, {SPACES: white_space})
            self._of_source[source] = _Repairs(general[0], general[1], own | general[2])
        return self._of_source[source]


class _Repairs:
    """Of the texts of one source, each a {kind: function}: `first` once, then `encoding` and `others` until nothing changes.

    changed: the kinds of those that changed the last text.
    """

    def __init__(self, first: dict[str, Repair], encoding: dict[str, Repair], others: dict[str, Repair]):
        self._first, self._encoding, self._others = first, encoding, others
        self.changed: list[str] = []

    def __call__(self, text: str) -> str:
        self.changed = []
        text = self._apply(self._first, text)
        for _ in range(MAX_ROUNDS):
            before = self._apply(self._encoding, text)
            text = self._apply(self._others, before)
            if text == before:  # what ftfy gave it leaves as it is
                break
        return text

    def _apply(self, repairs: dict[str, Repair], text: str) -> str:
        for kind, repair in repairs.items():
            before, text = text, repair(text)
            if text != before and kind not in self.changed:
                self.changed.append(kind)
        return text


def white_space(text: str) -> str:
    """One space where there were several, none at the ends of lines, one empty line where there were several."""
    return _lines(_SPACES.sub(" ", text)).strip()


def _blanks(text: str) -> str:
    """The same, but for spaces that may be a part of broken characters."""
    return _lines(_BLANKS.sub(" ", text))


def _lines(text: str) -> str:
    return _EMPTY_LINES.sub("\n\n", _LINE_END.sub("\n", text))


def _encoding() -> Repair:
    """ftfy with its defaults, line by line where there is something to mend.

    Curled quotes and wide forms stay in texts with Han characters or kana, whose punctuation they are. Escapes of HTML stay in texts with
    a "<": it may be about HTML.
    """
    with extras.needed("data"):
        import ftfy

    config = ftfy.TextFixerConfig(explain=False)

    def repair(text: str) -> str:
        if not _NOT_PLAIN.search(text):
            return text
        is_wide = bool(_WIDE.search(text))
        own = config._replace(unescape_html="<" not in text, uncurl_quotes=not is_wide, fix_character_width=not is_wide)
        return _NOT_PLAIN_LINE.sub(lambda line: ftfy.fix_text(line[0], own), text)

    return repair
