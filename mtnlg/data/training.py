"""Training SentencePiece models that give any text back exactly."""

import collections
import io
import re
from collections.abc import Iterable

from mtnlg.core.errors import DataError
from mtnlg.data.tokenizer import END_OF_DOCUMENT, SPACE

# No piece reaches over the border of a word. A word takes the space before it, and the line end and indentation after it.
_WORD = re.compile(r" ?\S{1,64}(?:(?:\r?\n){1,64} {0,64})?|\n{1,64} {0,64}| {1,64}(?= )|\s")

# SentencePiece never lets a longer piece end in its sign for a space, and so could not learn "\n    ". Training spells the space
# with this character of the private use area instead; `_respell` puts the sign in afterwards.
_STAND_IN = "\ue000"

# Characters the trainer reserves (tab, U+2585), refuses (NUL), or that stand for a space here: encoded as bytes.
_NOT_LEARNED = re.compile(f"[\0\t\u2585{SPACE}{_STAND_IN}]")

OPTION = "--config.model.vocab_size"
_MAX_WORDS = {"bpe": None, "unigram": 100_000}


def train_model(texts: Iterable[str], where: str, *, kind: str, vocab_size: int, max_bytes: int, option: str = OPTION) -> bytes:
    """A serialised SentencePiece model of exactly vocab_size pieces, deterministic in its arguments.

    kind: "bpe" (Sennrich et al. 2016) or "unigram" (Kudo 2018). Identity normalisation, no dummy prefix, white space kept, a piece
    for each byte; id 0 unknown (never used), 1 "<|endoftext|>", 2 to 257 the bytes.
    option: by which the user gives vocab_size.
    Raises DataError, naming a vocab_size that works, when the text has too few or too many different pieces for vocab_size.
    """
    import sentencepiece

    words = _count_words(_first_bytes(texts, max_bytes)).most_common(_MAX_WORDS[kind])
    if not words:
        raise DataError("there is no text to train a tokenizer on", where, "a source with text in it")
    # Unigram: fewer candidates and quicker pruning than the defaults: 10 MB of text in seconds, not minutes.
    quick = {"seed_sentencepiece_size": 5 * vocab_size, "shrinking_factor": 0.5, "num_sub_iterations": 1}
    options = quick if kind == "unigram" else {}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word.replace(' ', _STAND_IN)}\t{count}" for word, count in words),
            model_writer=model,
            input_format="tsv",
            model_type=kind,
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,
            split_by_unicode_script=False,
            byte_fallback=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_DOCUMENT,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise _misfit(str(error), where, vocab_size, option) from error
    return _respell(model.getvalue())


def _first_bytes(texts: Iterable[str], max_bytes: int) -> Iterable[str]:
    for text in texts:
        content = text.encode()[:max_bytes]
        max_bytes -= len(content)
        yield content.decode(errors="ignore")
        if not max_bytes:
            return


def _count_words(texts: Iterable[str]) -> collections.Counter:
    words = collections.Counter()
    for text in texts:
        for part in _NOT_LEARNED.split(text):
            words.update(_WORD.findall(part))
    return words


def _respell(model: bytes) -> bytes:
    """The model with the sign for a space where training had its stand-in."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    for piece in proto.pieces:
        piece.piece = piece.piece.replace(_STAND_IN, SPACE)
    return proto.SerializeToString(deterministic=True)


def _misfit(message: str, where: str, vocab_size: int, option: str) -> DataError:
    if too_high := re.search(r"set it to a value <= (\d+)", message):
        what = f"the text has too few pieces for a vocabulary of {vocab_size}"
        return DataError(what, where, f"{option}={too_high[1]}, or more text")
    if too_low := re.search(r"required_chars\. \d+ vs (\d+)", message):
        what = f"the text has too many different characters for a vocabulary of {vocab_size}"
        return DataError(what, where, f"{option}={too_low[1]} or more")
    return DataError(f"SentencePiece cannot train on this text: {message}", where, f"another text or {option}")
