"""Words and part-of-speech tags of English (HanTa, tags of the BNC, CLAWS C5) and Chinese (jieba, tags of the People's Daily, PKU)."""

import functools
import re
from collections.abc import Callable, Iterator

from mtnlg.core import extras
from mtnlg.factory.text.hanta import HanTa

MAX_SENTENCE_WORDS = 100  # longer ones are cut: the tagger's probabilities run out of range
MAX_WORD_CHARS = 40  # of a longer word the tagger sees the end
_ENGLISH_WORD = re.compile(
    r"\w+?(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|\w+(?:[.,'’/-](?!t\b|s\b|re\b|ve\b|ll\b|d\b|m\b)\w+)*|[^\w\s]", re.IGNORECASE
)
_BLOCK = re.compile(r".{1,50000}")
_SENTENCE_ENDS = frozenset(".!?")


class English:
    """Words as the BNC parts them: "do n't", "dog 's"."""

    def words(self, text: str) -> list[str]:
        return _ENGLISH_WORD.findall(text)

    def tagged(self, text: str) -> tuple[list[str], list[str]]:
        words, tags = [], []
        for sentence in self._sentences(text):
            words += sentence
            tags += self._tagger([word[-MAX_WORD_CHARS:].replace("’", "'") for word in sentence])
        return words, tags

    def _sentences(self, text: str) -> Iterator[list[str]]:
        for line in text.split("\n"):
            sentence = []
            for word in self.words(line):
                sentence.append(word)
                if word in _SENTENCE_ENDS or len(sentence) == MAX_SENTENCE_WORDS:
                    yield sentence
                    sentence = []
            if sentence:
                yield sentence

    @functools.cached_property
    def _tagger(self) -> HanTa:
        return HanTa()


class Chinese:
    """Words of jieba's dictionary; its guesses at others (HMM) cost three quarters of the speed and, on the news, some of the accuracy."""

    def words(self, text: str) -> list[str]:
        return [word for block in _blocks(text) for word in self._segmenter.cut(block, HMM=False) if not word.isspace()]

    def tagged(self, text: str) -> tuple[list[str], list[str]]:
        pairs = [pair for block in _blocks(text) for pair in self._tagger.cut(block, HMM=False) if not pair.word.isspace()]
        return [pair.word for pair in pairs], [pair.flag for pair in pairs]

    @functools.cached_property
    def _segmenter(self):
        """With the dictionary read from the package: by itself jieba keeps a copy in /tmp, which anybody may have put there."""
        with extras.needed("data"):
            import jieba

        segmenter = jieba.Tokenizer()
        segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
        segmenter.initialized = True
        return segmenter

    @functools.cached_property
    def _tagger(self):
        with extras.needed("data"):
            from jieba import posseg

        return posseg.POSTokenizer(self._segmenter)


def _blocks(text: str) -> Iterator[str]:
    """The lines of a text, longer ones in pieces: jieba takes 500 bytes of memory for each character of one that nothing parts."""
    return (match[0] for match in _BLOCK.finditer(text))


TAGGERS: dict[str, Callable[[], English | Chinese]] = {"en": English, "zh": Chinese}
