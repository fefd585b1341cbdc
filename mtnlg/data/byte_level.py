"""Byte-level BPE (Radford et al. 2019, section 2.2): its files, its training, and a fast engine that gives the same ids."""

import itertools
import json
from collections.abc import Iterable

from mtnlg.core.errors import DataError
from mtnlg.data import post_processor

END_OF_DOCUMENT = "<|endoftext|>"
OTHER_ENDS = ("<|end_of_text|>", "</s>", "<eos>")

# GPT-2's pre-tokenisation as tiktoken spells it: the same pieces as the `tokenizers` library's ByteLevel, without its backtracking.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _byte_letters() -> dict[str, int]:
    """GPT-2's visible letter of each byte (encoder.py, bytes_to_unicode)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


LETTERS = _byte_letters()

# Bytes that a vocabulary may lack: those of no UTF-8, control characters, and the first of the unassigned planes 4 to 11.
RARE = frozenset({*range(0x20), 0x7F, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)} - set(b"\t\n\r"))


def spelled_bytes(token: str) -> bytes:
    """The bytes that a token's letters stand for."""
    return bytes(LETTERS[letter] for letter in token) if all(c in LETTERS for c in token) else token.encode()


def description(vocabulary: bytes, merges: bytes, where: str, first: str | None = None) -> bytes:
    """The `tokenizer.json` of GPT-2's vocab.json and merges.txt; written here, so that its hash hangs on no library's version.

    A vocabulary without an end of document (OPT's is </s>) gets one behind its last token. first: a token of it that stands before every
    text. Raises DataError.
    """
    try:
        ids = json.loads(vocabulary)
        lines = merges.decode().split("\n")
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        end = next((token for token in (END_OF_DOCUMENT, *OTHER_ENDS) if token in ids), END_OF_DOCUMENT)
        eod_id = ids.setdefault(end, max(ids.values()) + 1)
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"not GPT-2's files: {error}", where, "both files, copied again") from error
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {end: eod_id} | ({first: ids[first]} if first in ids else {})
    found = {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": token, "special": True} | flags for token, id in special.items()],
        "pre_tokenizer": _BYTE_LEVEL,
        **({"post_processor": post_processor.before({first: ids[first]})} if first in ids else {}),
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": ids, "merges": pairs},
    }
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def engine(description: dict):
    """A tiktoken.Encoding with the ids of this `tokenizer.json`; None for one of another kind, or where tiktoken is not installed.

    It merges by the ids of tokens, so they must rise with the merges, and pieces must be GPT-2's.
    """
    try:
        import tiktoken
    except ImportError:
        return None
    model, before = description["model"], description.get("pre_tokenizer") or {"type": None}
    if model.get("type") != "BPE" or {**_BYTE_LEVEL, **before, "trim_offsets": True} != _BYTE_LEVEL or description.get("normalizer"):
        return None
    if any(model.get(option) for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")):
        return None
    if any(not token["special"] for token in description.get("added_tokens", ())):  # they are found in texts
        return None
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merged = [model["vocab"]["".join(pair)] for pair in pairs]
    if any(a >= b for a, b in itertools.pairwise(merged)):
        return None
    if LETTERS.keys() - model["vocab"].keys():
        return None
    ranks = {bytes([byte]): model["vocab"][letter] for letter, byte in LETTERS.items()}
    ranks |= {spelled_bytes("".join(pair)): id for pair, id in zip(pairs, merged, strict=True)}
    if len(set(ranks.values())) < len(ranks):
        return None
    return tiktoken.Encoding("byte-level", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def train(texts: Iterable[str], where: str, vocab_size: int) -> tuple[bytes, bytes]:
    """(vocab.json, merges.txt) of exactly vocab_size tokens (257 or more), the last of them the end of document; deterministic.

    Raises DataError, naming a vocab_size that works, when the texts are too small for it.
    """
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    size = vocab_size - 1
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    learnt = json.loads(model.to_str())["model"]
    if len(learnt["vocab"]) < size:
        cure = f"--vocab_size={len(learnt['vocab']) + 1}, or more text"
        raise DataError(f"the text has too few pieces for a vocabulary of {vocab_size}", where, cure)
    vocabulary = learnt["vocab"] | {END_OF_DOCUMENT: size}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learnt["merges"])]
    return json.dumps(vocabulary, ensure_ascii=False).encode(), "".join(f"{line}\n" for line in lines).encode()
