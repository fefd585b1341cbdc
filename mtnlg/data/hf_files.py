"""A tokenizer as the files that a Hugging Face folder has of it."""

import json

from mtnlg.data import companions, sentencepiece_json
from mtnlg.data.tokenizer import SentencePieceTokenizer, Tokenizer


def files(tokenizer: Tokenizer, seq_len: int) -> dict[str, bytes]:
    """{name: content}: the tokenizer, what it is for, and where a text ends; what came with it stays as it is.

    But for a SentencePiece model's class: transformers' own LlamaTokenizer treats spaces in another way than SentencePiece.
    seq_len: the longest text that the model reads. Raises DataError for a SentencePiece model that has no exact tokenizer.json.
    """
    texts = {id: text for text, id in tokenizer.special_ids.items()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": texts.get(tokenizer.eod_id), "model_max_length": seq_len}
    if tokenizer.start_ids:
        settings |= {"bos_token": texts.get(tokenizer.start_ids[0]), "add_bos_token": True}
    found = {companions.SETTINGS: _json(settings | {"clean_up_tokenization_spaces": False})}
    ends = {"bos_token_id": (*tokenizer.start_ids, tokenizer.eod_id)[0], "eos_token_id": sorted(tokenizer.end_ids)}
    found |= {companions.GENERATION: _json(ends), tokenizer.file_name: tokenizer.content}
    found |= tokenizer.companions.files
    if isinstance(tokenizer, SentencePieceTokenizer):
        said = json.loads(found[companions.SETTINGS])
        found[companions.SETTINGS] = _json(settings | said | {"tokenizer_class": settings["tokenizer_class"]})
        found[sentencepiece_json.FILE] = sentencepiece_json.description(tokenizer)
    return found


def _json(said: dict) -> bytes:
    return json.dumps(said, indent=2, ensure_ascii=False).encode() + b"\n"
