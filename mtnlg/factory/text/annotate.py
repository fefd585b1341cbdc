"""Writes fields beside the texts, for `filter --where`, for reports and as features: language, quality, words, part-of-speech tags.

Another annotator is named as package.module:maker. maker(options: Annotate) is called once in each worker and gives a function
(document, tally) -> fields to write; or it is put into ANNOTATORS under a name.
"""

import functools
import hashlib
import importlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from mtnlg.core.errors import ConfigError, MtnlgError
from mtnlg.core.schema import key
from mtnlg.factory import documents, registry, stage
from mtnlg.factory.inputs import Inputs
from mtnlg.factory.passes import Machine
from mtnlg.factory.tally import Tally
from mtnlg.factory.text import language, quality, tags
from mtnlg.factory.text.quality import Classifier

OWN_FIELDS = ("id", "text", "source")  # which no annotator may write
Annotator = Callable[[dict, Tally], dict]


@dataclass(frozen=True)
class Annotate:
    """Writes fields beside the texts; the texts stay as they are."""

    with_: tuple[str, ...] = key(("language",), "of language, quality, words, tags and package.module:maker")
    quality: str = key("", "the folder of train-quality, for the annotator quality")

    def check(self) -> None:
        """Raises ConfigError, MissingInput and DataError."""
        for name in self.with_:
            _maker(name)
        if "quality" in self.with_ and not self.quality:
            raise ConfigError("quality needs a classifier", "stage annotate", "quality=FOLDER of python -m mtnlg data train-quality")
        if self.quality:
            Classifier.load(self.quality)
        for name in self.with_:
            if name not in ANNOTATORS:
                _made(name, self)

    def run(self, inputs: tuple[str, ...], output, machine: Machine) -> Tally:
        known = {"quality": quality.sha256(self.quality)} if self.quality else {}
        if sources := {name: source for name in self.with_ if (source := _source(name))}:
            known["annotators"] = sources
        return stage.run(output, "annotate", self, Inputs(inputs), self.step, machine, **known)

    def step(self) -> stage.Step:
        return _Step(self)


class _Step:
    def __init__(self, options: Annotate):
        names = [name for name in dict.fromkeys(options.with_) if name != "words" or "tags" not in options.with_]  # tags bring words
        self._annotators = {name: _made(name, options) for name in names}

    def __call__(self, document: dict, tally: Tally) -> list[dict]:
        for name, annotate in self._annotators.items():
            fields = annotate(document, tally)
            if not isinstance(fields, dict):
                what = f"annotator {name} gave {type(fields).__name__}, not fields"
                raise ConfigError(what, "stage annotate", "a dict of the fields to write, as {}")
            if own := [field for field in OWN_FIELDS if field in fields]:
                raise ConfigError(f"annotator {name} writes the field {own[0]!r}", "stage annotate", "another name for it")
            document = document | fields
        return [document]


def _maker(name: str) -> Callable[[Annotate], Annotator]:
    """Raises ConfigError."""
    if name in ANNOTATORS:
        return ANNOTATORS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(
            f"there is no annotator {name!r}", "stage annotate", registry.nearest(name, [*ANNOTATORS, "package.module:maker"])
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"annotator {name!r} cannot be imported: {error}", "stage annotate", "package.module:maker") from None


def _made(name: str, options: Annotate) -> Annotator:
    """Raises ConfigError, and for annotators of our own what they raise."""
    maker = _maker(name)
    if name in ANNOTATORS:
        return maker(options)
    try:
        return maker(options)
    except MtnlgError:
        raise
    except Exception as error:
        what = f"annotator {name!r} cannot be made: {type(error).__name__} in {stage.place(error)}: {documents.shown(str(error))}"
        raise ConfigError(what, "stage annotate", "mending its maker, a function of the options of annotate") from error


def _source(name: str) -> str | None:
    """sha256 of the file that a user's annotator is written in, where there is one."""
    file = None if name in ANNOTATORS else getattr(importlib.import_module(name.partition(":")[0]), "__file__", None)
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest() if file else None


def _language(options: Annotate) -> Annotator:
    detect = language.detector()

    def annotate(document: dict, tally: Tally) -> dict:
        found = detect(document["text"])
        tally.count(language.FIELD, found)
        return {language.FIELD: found}

    return annotate


def _quality(options: Annotate) -> Annotator:
    classifier = Classifier.load(options.quality)

    def annotate(document: dict, tally: Tally) -> dict:
        score = classifier(document["text"])
        tally.count(quality.FIELD, quality.tenth(score))
        return {quality.FIELD: score}

    return annotate


class _Words:
    """The field words, and tags if they are wanted; neither for a language without a tagger. A language that is known is not looked for."""

    def __init__(self, options: Annotate, with_tags: bool):
        self._with_tags, self._detect, self._codes = with_tags, language.detector(), language.codes()
        self._taggers: dict[str, tags.English | tags.Chinese] = {}

    def __call__(self, document: dict, tally: Tally) -> dict:
        known = document.get(language.FIELD)
        code = known if isinstance(known, str) and known in self._codes else self._detect(document["text"])
        if code not in tags.TAGGERS:
            return {}
        if code not in self._taggers:
            self._taggers[code] = tags.TAGGERS[code]()
        if not self._with_tags:
            found = {"words": self._taggers[code].words(document["text"])}
        else:
            found = dict(zip(("words", "tags"), self._taggers[code].tagged(document["text"]), strict=True))
            tally.count_all(f"tags {code}", found["tags"])
        tally.count_all(f"words {code}", map(str.lower, found["words"]))
        return found


ANNOTATORS: dict[str, Callable[[Annotate], Annotator]] = {
    "language": _language,
    "quality": _quality,
    "words": functools.partial(_Words, with_tags=False),
    "tags": functools.partial(_Words, with_tags=True),
}
