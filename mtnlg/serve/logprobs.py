"""Log-probabilities in the two forms of OpenAI's API: of completions, and of chat."""

import codecs
from collections.abc import Iterable

from mtnlg.serve.writer import Piece

_LEAST = -9999.0  # OpenAI's, for what JSON cannot say


class Offsets:
    """Where each token begins in a text, in characters: a token that is part of one begins where the character does."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def next(self, content: bytes) -> int:
        begin = self._num_chars
        self._num_chars += len(self._decoder.decode(content))
        return begin


def of_completion(pieces: Iterable[Piece], offsets: Offsets) -> dict:
    """Lists over the tokens. The one written stands among the likeliest, also when it is not one of them."""
    pieces = list(pieces)
    return {
        "tokens": [_shown(piece.bytes) for piece in pieces],
        "token_logprobs": [_finite(piece.logprob) for piece in pieces],
        "top_logprobs": [_likeliest(piece) for piece in pieces],
        "text_offset": [offsets.next(piece.bytes) for piece in pieces],
    }


def of_chat(pieces: Iterable[Piece]) -> dict:
    """A list of tokens, each with its bytes and the likeliest of its place."""
    told = [
        {**_entry(piece.bytes, piece.logprob), "top_logprobs": [_entry(content, logprob) for content, logprob in piece.likeliest]}
        for piece in pieces
    ]
    return {"content": told, "refusal": None}


def _likeliest(piece: Piece) -> dict[str, float] | None:
    if piece.logprob is None:
        return None
    return {_shown(content): _finite(logprob) for content, logprob in (*piece.likeliest, (piece.bytes, piece.logprob))}


def _entry(content: bytes, logprob: float) -> dict:
    return {"token": _shown(content), "logprob": _finite(logprob), "bytes": list(content)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)


def _shown(content: bytes) -> str:
    """A token as text; bytes that are none are written out, as OpenAI does."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
