"""Stages for graphs, which need no library but zstandard."""

import functools
import sys
from dataclasses import dataclass

from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import key
from mtnlg.factory import registry, stage
from mtnlg.factory.documents import Drop
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.registry import Entry


@dataclass(frozen=True)
class Keep:
    """Leaves out texts with a word."""

    without: str = key("", "texts with it are left out")
    min_chars: int = key(0, "shorter texts are left out")
    fraction: float = key(1.0, "of nothing")
    mode: str = key("plain", "of nothing", ("plain", "fancy"))

    def check(self):
        if self.min_chars < 0:
            raise ConfigError(f"min_chars={self.min_chars} is below 0", "stage keep", "min_chars=0")

    def run(self, inputs, output, machine):
        return stage.run(output, "keep", self, Inputs(inputs), functools.partial(_Keep, self), machine)


class _Keep:
    def __init__(self, options):
        self._options = options

    def __call__(self, document, tally):
        if len(document["text"]) < self._options.min_chars:
            return Drop("too short")
        if self._options.without and self._options.without in document["text"]:
            tally.sample("a pair", {"id": document["id"], "kept text": document["text"], "text": document["text"]})
            return Drop(f"with {self._options.without}")
        tally.count("language", "English" if document["text"].isascii() else "another")
        tally.count("clusters by size", str(1 + len(document["text"]) % 3))
        return [document]


@dataclass(frozen=True)
class Words:
    """Counts words as if they were tokens."""

    def run(self, inputs, output, machine):
        return stage.run(output, "words", self, Inputs(inputs), _Words, machine)


class _Words:
    def __call__(self, document, tally):
        tally.count("tokens written", document["source"], len(document["text"].split()))
        return [document]


def register() -> None:
    sys.modules["mtnlg.factory.fakes"] = sys.modules[__name__]
    registry.STAGES["keep"] = Entry("fakes", "Keep", "")
    registry.STAGES["words"] = Entry("fakes", "Words", "")
