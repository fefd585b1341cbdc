"""SentencePiece models as the `tokenizer.json` that transformers wants, with the same ids.

Not the same: a U+2581 in a text, which our own models spell in bytes (`SentencePieceTokenizer`), is a space there, as in SentencePiece;
and transformers finds the special tokens in any text. Of a Unigram model's paths that are as good (one space and two, or two and one)
each may take another: SentencePiece rounds their scores to float32.
"""

import json
import re
from typing import Any

from mtnlg.core.errors import DataError
from mtnlg.data import post_processor
from mtnlg.data.tokenizer import SPACE, SentencePieceTokenizer

FILE = "tokenizer.json"
_NORMAL, _UNKNOWN, _CONTROL, _, _, _BYTE = range(1, 7)
_NEVER = -1e6  # the score of a piece that no text may be cut into, as "<0x0A>"


def description(tokenizer: SentencePieceTokenizer) -> bytes:
    """The content of tokenizer.json. Raises DataError for a model that normalises texts, or with pieces defined by a user."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content)
    spec, trainer = proto.normalizer_spec, proto.trainer_spec
    unusual = {piece.type for piece in proto.pieces} - {_NORMAL, _UNKNOWN, _CONTROL, _BYTE}
    normal = {piece.piece for piece in proto.pieces if piece.type == _NORMAL}
    unigram = trainer.model_type != trainer.BPE
    unusual |= set("".join(normal)) - normal if unigram else set()
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces or unusual or trainer.treat_whitespace_as_suffix:
        what = "a SentencePiece model that normalises texts, or with user-defined or unused pieces, has no exact tokenizer.json"
        raise DataError(what, tokenizer.file_name, "the tokenizer.json of the model's own project")
    texts = {id: text for text, id in tokenizer.special_ids.items()}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [(id, piece.piece) for id, piece in enumerate(proto.pieces) if piece.type in (_UNKNOWN, _CONTROL)]
    prefix = [{"type": "Prepend", "prepend": SPACE}] if spec.add_dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spec.add_dummy_prefix else []
    spaces = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    found = {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": text, "special": True} | flags for id, text in special],
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": _apart({piece.piece for piece in proto.pieces} - normal, normal) if unigram else None,
        "post_processor": post_processor.before({texts[id]: id for id in tokenizer.start_ids}) if tokenizer.start_ids else None,
        "decoder": {"type": "Sequence", "decoders": [*spaces, *strip]},
        "model": _unigram(proto) if unigram else _bpe(proto),
    }
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def _bpe(proto) -> dict[str, Any]:
    """SentencePiece merges the neighbours whose piece has the highest score; here every such pair stands in the order of scores."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    pairs = [(text[:cut], text[cut:]) for text in scores for cut in range(1, len(text))]
    merges = [pair for pair in pairs if pair[0] in scores and pair[1] in scores]
    merges.sort(key=lambda pair: -scores[pair[0] + pair[1]])
    vocabulary = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    return _model("BPE", proto) | {"unk_token": _unknown(proto)[1], "fuse_unk": True, "vocab": vocabulary, "merges": merges}


def _apart(names: set[str], normal: set[str]) -> dict[str, Any] | None:
    """What keeps names of special tokens and bytes out of texts where they have characters that no piece has: these stand alone."""
    letters = sorted(set("".join(names)) - normal)
    pattern = "|".join(map(re.escape, letters))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False} if letters else None


def _unigram(proto) -> dict[str, Any]:
    """Special tokens and bytes would be found in texts by their names: a score keeps them out, all of whose characters are pieces."""
    vocabulary = [[piece.piece, piece.score if piece.type == _NORMAL else _NEVER] for piece in proto.pieces]
    return _model("Unigram", proto) | {"unk_id": _unknown(proto)[0], "vocab": vocabulary}


def _model(kind: str, proto) -> dict[str, Any]:
    return {"type": kind, "byte_fallback": any(piece.type == _BYTE for piece in proto.pieces)}


def _unknown(proto) -> tuple[int, str]:
    return next((id, piece.piece) for id, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
