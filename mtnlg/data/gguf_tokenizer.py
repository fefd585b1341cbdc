"""The tokenizer inside a GGUF file (llama.cpp), as the file that its own project has, and the companions beside it."""

import json
from typing import Any

from mtnlg.core.errors import DataError
from mtnlg.data import companions, post_processor
from mtnlg.data.tokenizer import SPACE, JsonTokenizer, SentencePieceTokenizer, Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # SentencePiece's numbers
_CURE = "the tokenizer of the model's own project, with --tokenizer=PATH"

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2 = {**_BYTES, "use_regex": True}
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**_BYTES, "use_regex": False}]}


# A file only names the way in which texts are cut before they are merged. Here is what the tokenizer.json of these projects has:
# (pre_tokenizer, normalizer, whether a whole piece is taken from the vocabulary without regard to merges, whether bos is the default).
_DIGITS = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]}
_LLAMA3 = (_split(rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), None, True, True)
CUTS = {
    "gpt-2": (_GPT2, None, False, False),
    "smollm": (_DIGITS, None, False, False),
    "starcoder": (_DIGITS, None, False, False),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": (_split(rf"{_LETTERS}|\p{{N}}|{_REST}"), {"type": "NFC"}, False, False),
}


def load(fields: dict[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a file's fields (`interop.foreign.Foreign.text_fields`). Raises DataError for one that is not known, or damaged."""
    kind = fields.get("tokenizer.ggml.model")
    makers = {"gpt2": (_byte_level, JsonTokenizer), "llama": (_sentencepiece, SentencePieceTokenizer)}
    if type(kind) is not str or kind not in makers:
        raise DataError(f"a tokenizer of the kind {_short(kind)}", where, _CURE)
    vocabulary = _Vocabulary(fields, where)
    make, tokenizer = makers[kind]
    content, adds_bos = make(fields, vocabulary, where)
    return tokenizer(content, where, companions.parse(_companions(fields, vocabulary, adds_bos), where))


class _Vocabulary:
    """tokens, their kinds, and `ids` of those with a role, all in range. Raises DataError."""

    def __init__(self, fields: dict[str, Any], where: str):
        self.tokens = _strings(fields, "tokens", where)
        self.kinds = fields.get("tokenizer.ggml.token_type", [_NORMAL] * len(self.tokens))
        if not isinstance(self.kinds, list) or len(self.kinds) != len(self.tokens) or len(set(self.tokens)) < len(self.tokens):
            raise DataError("damaged: every token has one text of its own, and one type", where, _CURE)
        names = {key: f"tokenizer.ggml.{key}_token_id" for key in ("bos", "eos", "eot", "eom", "unknown", "padding")}
        self.ids = {key: fields[name] for key, name in names.items() if name in fields}
        for key, id in self.ids.items():
            if type(id) is not int or not 0 <= id < len(self.tokens):
                raise DataError(f"damaged: {names[key]}={_short(id)} of {len(self.tokens)} tokens", where, _CURE)

    def text(self, role: str) -> str | None:
        return self.tokens[self.ids[role]] if role in self.ids else None


def _byte_level(fields: dict[str, Any], vocabulary: _Vocabulary, where: str) -> tuple[bytes, bool]:
    """tokenizer.json, and whether it puts bos before a text."""
    cut = fields.get("tokenizer.ggml.pre")
    if type(cut) is not str or cut not in CUTS:
        what = f"the file's texts are cut in a way that is not known: tokenizer.ggml.pre={_short(cut)}"
        raise DataError(what, where, _CURE)
    pre_tokenizer, normalizer, ignores_merges, bos = CUTS[cut]
    adds_bos = bool(fields.get("tokenizer.ggml.add_bos_token", bos)) and "bos" in vocabulary.ids
    merges = [merge.split(" ") for merge in _strings(fields, "merges", where)]
    named = list(enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": id, "content": token, "special": kind == _CONTROL} | flags
        for id, (token, kind) in named
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    model = {"type": "BPE", "ignore_merges": ignores_merges, "vocab": {token: id for id, (token, kind) in named if kind != _UNUSED}}
    description = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor.before({vocabulary.text("bos"): vocabulary.ids["bos"]}) if adds_bos else None,
        "decoder": _GPT2,
        "model": {**model, "merges": merges},
    }
    return _json(description), adds_bos


def _sentencepiece(fields: dict[str, Any], vocabulary: _Vocabulary, where: str) -> tuple[bytes, bool]:
    """tokenizer.model, and whether bos stands before a text. llama.cpp merges by scores, as SentencePiece's BPE does."""
    from sentencepiece import sentencepiece_model_pb2

    scores = fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise DataError("damaged: every token has a score", where, _CURE)
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.kinds, strict=True):
            proto.pieces.add(piece=token.replace(" ", SPACE), score=score, type=kind)
    except (ValueError, TypeError) as error:
        raise DataError(f"damaged: {error}", where, _CURE) from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(scores), _BYTE in vocabulary.kinds
    roles = {"unk": vocabulary.text("unknown"), "bos": vocabulary.text("bos"), "eos": vocabulary.text("eos")}
    for role, text in roles.items():
        if text is not None:
            setattr(trainer, f"{role}_piece", text)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    normalizer.remove_extra_whitespaces = bool(fields.get("tokenizer.ggml.remove_extra_whitespaces", False))
    return proto.SerializeToString(deterministic=True), bool(fields.get("tokenizer.ggml.add_bos_token", True))


def _companions(fields: dict[str, Any], vocabulary: _Vocabulary, adds_bos: bool) -> dict[str, bytes]:
    tokens = {
        f"{role}_token": vocabulary.text(key) for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    settings = {name: text for name, text in tokens.items() if text is not None}
    settings |= {"add_bos_token": adds_bos, "clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    ends = sorted({vocabulary.ids[key] for key in ("eos", "eot", "eom") if key in vocabulary.ids})
    found = {companions.SETTINGS: _json(settings), companions.GENERATION: _json({"eos_token_id": ends})}
    template = fields.get("tokenizer.chat_template")
    return found | ({companions.TEMPLATE: template.encode()} if isinstance(template, str) else {})


def _strings(fields: dict[str, Any], name: str, where: str) -> list[str]:
    found = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise DataError(f"damaged, or without its tokenizer: tokenizer.ggml.{name} is no list of texts", where, _CURE)
    return found


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _short(value: Any) -> str:
    return repr(value)[:80]
