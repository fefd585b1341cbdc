"""Part-of-speech tags of English by HanTa's model (Wartena 2019, "A Probabilistic Morphology Model for German Lemmatization").

HanTa's own search tries all 64 tags at each word; this one those that the word may have, and gives the same tags four times as fast.
"""

import functools
import math

from mtnlg.core import extras

BEAM = 5  # states that are followed, and those within _NEAR of the next, as HanTa does
_NEAR = 1.0
_CUTOFF = 5  # tags less likely than the best by so much (natural logarithm) are not tried
_KNOWN_WORDS = 50_000  # whose analysis is remembered

State = tuple[int, int]  # the tags of the last two words


class HanTa:
    """Raises ConfigError when HanTa is not installed. Its model comes with it, and takes 40 MB."""

    def __init__(self):
        with extras.needed("data"):
            from HanTa import HanoverTagger as hanta

        self._start, self._end, self._unknown = (hanta.EMPTY, hanta.START), hanta.END, hanta.UNKNOWN
        self._model = hanta.HanoverTagger("morphmodel_en.pgz")
        self._tags_of = functools.lru_cache(_KNOWN_WORDS)(self._look_up)

    def __call__(self, sentence: list[str]) -> list[str]:
        """The tag of each word, of CLAWS C5."""
        scores: dict[State, float] = {self._start: 0.0}
        steps: list[dict[State, State]] = []  # from a state to the best one before it
        for place, word in enumerate(sentence):
            scores, before = self._step(scores, self._tags_of(word, place > 0))
            steps.append(before)
        state = max(scores, key=lambda last: scores[last] + self._model.LP_trans_word[last].get(self._end, -math.inf))
        tags = []
        for before in reversed(steps):
            tags.append(self._model.int2tag[state[1]])
            state = before[state]
        return tags[::-1]

    def _step(self, scores: dict[State, float], tags: tuple | None) -> tuple[dict[State, float], dict[State, State]]:
        least = sorted(scores.values(), reverse=True)[BEAM] - _NEAR if len(scores) > BEAM else -math.inf
        found: dict[State, float] = {}
        before: dict[State, State] = {}
        for state, score in scores.items():
            if score < least:
                continue
            follows = self._model.LP_trans_word[state]
            for tag, fits in tags or zip(follows, [0.0] * len(follows), strict=True):
                if tag in follows and tag != self._end:
                    new = (state[1], tag)
                    if (reached := score + follows[tag] + fits) > found.get(new, -math.inf):
                        found[new], before[new] = reached, state
        return found, before

    def _look_up(self, word: str, is_inside: bool) -> tuple[tuple[int, float], ...] | None:
        """(tag, logarithm of its probability) of the tags that a word may have; None: any. Capitals tell within a sentence only."""
        tags = dict(self._model._tag_word(word, cutoff=_CUTOFF, casesensitive=is_inside, conditional=True))
        return tuple(tags.items()) if set(tags) - {self._unknown} else None
