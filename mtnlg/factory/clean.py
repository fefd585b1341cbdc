"""Repairs text, and leaves out what is too short to be one (MT-NLG, arXiv 2201.11990, section 3: ftfy, lengths, "javascript")."""

import re
from dataclasses import dataclass

from mtnlg.core import extras
from mtnlg.core.schema import key
from mtnlg.factory import stage
from mtnlg.factory.documents import Drop
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally

_SPACES = re.compile(r"[^\S\n]+")
_EMPTY_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Clean:
    """Repairs encodings (ftfy), joins runs of spaces and of empty lines, and leaves out short texts."""

    min_chars: int = key(512, "shorter texts are left out")
    javascript_chars: int = key(256, "texts with the word javascript that are shorter than this are left out")

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        return stage.run(output, "clean", self, Inputs(inputs), self.step, machine)

    def step(self) -> stage.Step:
        return _Step(self)


class _Step:
    def __init__(self, options: Clean):
        with extras.needed("data"):
            import ftfy

        self._options, self._fix = options, ftfy.fix_text

    def __call__(self, document: dict, tally: Tally) -> list[dict] | Drop:
        text = self._fix(document["text"])
        text = _EMPTY_LINES.sub("\n\n", _SPACES.sub(" ", text)).strip()
        if len(text) < self._options.min_chars:
            return Drop("too short")
        if len(text) < self._options.javascript_chars and "javascript" in text.lower():
            return Drop("javascript")
        if text != document["text"]:
            tally.count("changed", "text")
        return [document | {"text": text}]
