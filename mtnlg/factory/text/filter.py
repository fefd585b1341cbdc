"""Keeps the documents worth reading: by language, by quality, by what is written beside the text, and by heuristics."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from mtnlg.core.errors import ConfigError
from mtnlg.core.schema import key
from mtnlg.factory import registry, stage
from mtnlg.factory.documents import Drop
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally
from mtnlg.factory.text import language, quality, where
from mtnlg.factory.text.quality import Classifier
from mtnlg.factory.text.rules import RULES

DEFAULT_ALPHA = 3.0


@dataclass(frozen=True)
class Filter:
    """Keeps documents that all conditions hold for: fields first, then heuristics, quality, and languages, the slowest, at last."""

    where: tuple[str, ...] = key((), "FIELD=VALUE, FIELD<NUMBER or FIELD>NUMBER, all of which hold; FIELD goes down with dots")
    rules: tuple[str, ...] = key((), f"heuristics for English: {', '.join(RULES)}")
    quality: str = key("", "the folder of train-quality, whose score is written as the field quality; none: not looked at")
    alpha: float = key(
        DEFAULT_ALPHA, "a document is kept if a number of the Pareto distribution with this alpha is larger than 1 - quality"
    )
    languages: tuple[str, ...] = key((), "ISO 639-1 codes that are kept, written as the field language; none: not looked at")

    def check(self) -> None:
        """Raises ConfigError, MissingInput and DataError."""
        if not (self.where or self.rules or self.quality or self.languages):
            raise ConfigError("no condition is named", "stage filter", "one or more of where, rules, quality and languages")
        if self.alpha != DEFAULT_ALPHA and not self.quality:
            raise ConfigError(
                f"alpha={self.alpha} without quality", "stage filter", "quality=FILE.npz of python -m mtnlg data train-quality"
            )
        for condition in self.where:
            where.parse(condition)
        for name in self.rules:
            if name not in RULES:
                raise ConfigError(f"there are no rules {name!r}", "stage filter", registry.nearest(name, RULES))
        for code in self.languages:
            if code not in language.codes() | {language.UNKNOWN}:
                raise ConfigError(f"there is no language {code!r}", "stage filter", "a code of ISO 639-1, as languages=en,zh")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha={self.alpha} is not above 0", "stage filter", "alpha=3.0")
        if self.quality:
            Classifier.load(self.quality)

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        known = {"quality": quality.sha256(self.quality)} if self.quality else {}
        return stage.run(output, "filter", self, Inputs(inputs), self.step, machine, **known)

    def step(self) -> stage.Step:
        return _Step(self)


class _Step:
    def __init__(self, options: Filter):
        by_option: tuple[tuple[object, Callable], ...] = (
            (options.where, _where),
            (options.rules, _rules),
            (options.quality, _quality),
            (options.languages, _languages),
        )
        self._filters = [make(options) for given, make in by_option if given]

    def __call__(self, document: dict, tally: Tally) -> list[dict] | Drop:
        for one in self._filters:
            document = one(document, tally)
            if isinstance(document, Drop):
                return document
        return [document]


def _where(options: Filter):
    conditions = list(map(where.parse, options.where))

    def apply(document: dict, tally: Tally) -> dict | Drop:
        for condition in conditions:
            if not condition.holds(document):
                return Drop(f"where: no field {condition.field}" if condition.is_missing(document) else f"where: not {condition}")
        return document

    return apply


def _rules(options: Filter):
    def apply(document: dict, tally: Tally) -> dict | Drop:
        for name in options.rules:
            found = RULES[name](document["text"], tally)
            if isinstance(found, Drop):
                return found
            if found != document["text"]:
                tally.count("changed", name)
                document = document | {"text": found}
        return document

    return apply


def _languages(options: Filter):
    detect = language.detector()

    def apply(document: dict, tally: Tally) -> dict | Drop:
        found = detect(document["text"])
        tally.count(language.FIELD, found)
        return document | {language.FIELD: found} if found in options.languages else Drop(f"language {found}")

    return apply


def _quality(options: Filter):
    classifier = Classifier.load(options.quality)

    def apply(document: dict, tally: Tally) -> dict | Drop:
        score = classifier(document["text"])
        is_kept = pareto(document["source"], document["id"], options.alpha) > 1 - score
        tally.count(f"quality {'kept' if is_kept else 'left out'}", quality.tenth(score))
        return document | {quality.FIELD: score} if is_kept else Drop("quality")

    return apply


def pareto(source: str, id: str, alpha: float) -> float:
    """A sample of numpy's Pareto distribution (of Lomax: x >= 0, P(> x) = (1 + x)^-alpha), the same for the same source and id.

    A document of quality s is so kept with probability (2 - s)^-alpha (GPT-3, appendix A): of those with s = 0 one in eight for 3.
    """
    uniform = (int.from_bytes(hashlib.blake2b(f"{source}\0{id}".encode(), digest_size=8, person=b"pareto").digest()) + 1) / 2**64
    return uniform ** (-1 / alpha) - 1
