"""Tokenizers out of the fields of a GGUF file: the same ids as the tokenizer that the fields were made from."""

import json
import pathlib
import random

import pytest
import tokenizers

from mtnlg.core.errors import DataError
from mtnlg.data import byte_level, gguf_tokenizer, tokenizer

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
HOSTILE = "It's 12345 o'CLOCK,\n\n  1.5\t\r\n  é中文字123\U0001f642 don't ''DON'T ▁ <s></s><|end|>[PAD]  \u3000x\xa0 \n \n"
TOKENS = ["<|end|>", "<|turn|>", *byte_level.LETTERS, "he", "ll", "hell", "Ġhe", "12", "123", "zq", "<tool>", "[PAD]"]
MERGES = ["h e", "l l", "he ll", "Ġ he", "1 2", "12 3"]
KINDS = [3, 3, *[1] * (len(TOKENS) - 4), 4, 5]


def fields(cut="gpt-2", **changes):
    found = {"model": "gpt2", "pre": cut, "tokens": TOKENS, "token_type": KINDS, "merges": MERGES, "eos_token_id": 1, "eot_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in (found | changes).items() if value is not None}


def pieces(tok, text):
    return [tok.decode([id]) for id in tok.encode(text)]


@pytest.mark.parametrize(
    "cut, text, wanted",
    [
        ("gpt-2", " hell1234", [" ", "hell", "123", "4"]),
        ("smollm", " hell1234", [" ", "hell", "1", "2", "3", "4"]),
        ("starcoder", "12", ["1", "2"]),
        ("qwen2", " hell1234", [" ", "hell", "1", "2", "3", "4"]),
        ("llama-bpe", " hell1234", [" ", "hell", "123", "4"]),
        ("llama3", "4123", ["4", "12", "3"]),  # in threes from the left
        ("gpt-2", "4123", ["4", "123"]),
        ("gpt-2", "zq", ["z", "q"]),
        ("llama-bpe", "zq", ["zq"]),  # a whole piece needs no merges
    ],
)
def test_texts_are_cut_in_the_named_way(cut, text, wanted):
    assert pieces(gguf_tokenizer.load(fields(cut), "f"), text) == wanted


@pytest.mark.parametrize("cut", gguf_tokenizer.CUTS)
def test_any_text_comes_back(cut):
    tok = gguf_tokenizer.load(fields(cut), "f")
    assert tok.decode(tok.encode(HOSTILE)) == HOSTILE
    assert not {0, 1} & set(tok.encode(HOSTILE))


def test_roles_ends_and_templates():
    template = {"tokenizer.chat_template": "{{ messages }}"}
    tok = gguf_tokenizer.load(fields(bos_token_id=0, add_bos_token=True, padding_token_id=1) | template, "f")
    assert (tok.eod_id, tok.end_ids, tok.start_ids, tok.vocab_size) == (1, {0, 1}, (0,), len(TOKENS) - 1)
    assert tok.special_ids == {"<|end|>": 0, "<|turn|>": 1}
    assert tok.companions.tokens == {"bos_token": "<|end|>", "eos_token": "<|turn|>", "pad_token": "<|turn|>"}
    assert tok.companions.template == "{{ messages }}"
    assert tok.encode("<tool>") == [TOKENS.index("<tool>")] and tok.encode_marked("<|turn|>") == [1]


def test_bos_of_llama3_is_there_unless_it_is_said_not_to_be():
    assert gguf_tokenizer.load(fields("llama-bpe", bos_token_id=0), "f").start_ids == (0,)
    assert gguf_tokenizer.load(fields("llama-bpe", bos_token_id=0, add_bos_token=False), "f").start_ids == ()
    assert gguf_tokenizer.load(fields("qwen2", bos_token_id=0), "f").start_ids == ()


def test_what_is_saved_is_what_was_read(tmp_path):
    tok = gguf_tokenizer.load(fields(bos_token_id=0, add_bos_token=True), "f")
    again = tokenizer.load(tok.save(tmp_path))
    assert (again.sha256, again.eod_id, again.end_ids, again.start_ids) == (tok.sha256, tok.eod_id, tok.end_ids, tok.start_ids)
    json.loads((tmp_path / "generation_config.json").read_text())


def test_gpt2_is_gpt2(tmp_path):
    """As the files that GPT-2's own project has."""
    tokens = [*byte_level.LETTERS, "he", "ll", "hell", "<|endoftext|>"]
    ids = {token: id for id, token in enumerate(tokens)}
    description = byte_level.description(json.dumps(ids).encode(), b"h e\nl l\nhe ll\n", "here")
    made = gguf_tokenizer.load(
        fields(tokens=tokens, token_type=[1] * 259 + [3], merges=MERGES[:3], eos_token_id=259, eot_token_id=None), "f"
    )
    assert made.encode(HOSTILE) == tokenizers.Tokenizer.from_str(description.decode()).encode(HOSTILE).ids
    assert made.eod_id == 259


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pre": "default"}, "not known: tokenizer.ggml.pre='default'"),
        ({"pre": None}, "not known: tokenizer.ggml.pre=None"),
        ({"pre": ["gpt-2"]}, "not known"),
        ({"model": "rwkv"}, "of the kind 'rwkv'"),
        ({"model": [1]}, "of the kind"),
        ({"tokens": None}, "tokens is no list"),
        ({"tokens": [1, 2]}, "tokens is no list"),
        ({"tokens": [*TOKENS[:-1], "he"]}, "one text of its own"),
        ({"token_type": KINDS[:-1]}, "one type"),
        ({"merges": ["h e l"]}, "not a tokenizer"),
        ({"merges": ["h q9"]}, "not a tokenizer"),
        ({"eos_token_id": len(TOKENS)}, "eos_token_id=267 of 267"),
        ({"eos_token_id": -1}, "eos_token_id=-1"),
        ({"eos_token_id": "x"}, "eos_token_id='x'"),
        ({"model": "llama"}, "every token has a score"),
        ({"model": "llama", "scores": [0.0] * len(TOKENS), "token_type": [99] * len(TOKENS)}, "damaged"),
        ({"model": "llama", "scores": ["a"] * len(TOKENS)}, "damaged"),
        ({"model": "llama", "scores": [0.0] * len(TOKENS)}, "not a SentencePiece model"),  # without an unknown piece
    ],
)
def test_what_is_not_known_or_damaged(changes, message):
    with pytest.raises(DataError, match=rf"{message}.*\(.*f.*\)\. Try: "):
        gguf_tokenizer.load(fields(**changes), "f.gguf")


def of_sentencepiece(content):
    """The fields that llama.cpp's converter makes of a tokenizer.model."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    model = SentencePieceProcessor(model_proto=content)
    found = {
        "model": "llama",
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "bos_token_id": model.bos_id(),
        "eos_token_id": model.eos_id(),
        "unknown_token_id": model.unk_id(),
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in found.items() if value != -1}


def require_same_ids(content):
    import sentencepiece

    made, oracle = gguf_tokenizer.load(of_sentencepiece(content), "f"), sentencepiece.SentencePieceProcessor(model_proto=content)
    for text in (HOSTILE, "the cat", "  the  cat ", "", "\n", " "):
        ids = made.encode(text)
        assert (ids == oracle.encode(text)) or "▁" in text  # our own way with that character
        assert made.decode(ids) == text or "▁" in text
    assert (made.vocab_size, made.eod_id) == (oracle.get_piece_size(), oracle.eos_id())
    return made


@pytest.mark.parametrize("dummy", [True, False])
def test_sentencepiece(dummy):
    import io

    import sentencepiece

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 9),
        model_writer=writer,
        vocab_size=280,
        byte_fallback=True,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy,
        minloglevel=2,
    )
    tok = require_same_ids(writer.getvalue())
    assert tok.start_ids == (1,) and tok.has_dummy_prefix == dummy


@pytest.mark.parametrize("path", ["tokenizers/llama2_sp/tokenizer.model", "models/stories15M/tokenizer.model"])
def test_llama2(path):
    if not (SHARED / path).is_file():
        pytest.skip(f"{path} is not here")
    require_same_ids((SHARED / path).read_bytes())


@pytest.mark.slow
def test_cuts_are_those_that_transformers_writes():
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    converters = pytest.importorskip("transformers.convert_slow_tokenizer")
    made = qwen2.Qwen2Tokenizer(vocab={token: id for id, token in enumerate(TOKENS)}, merges=[tuple(m.split(" ")) for m in MERGES])
    theirs = json.loads(made.backend_tokenizer.to_str())
    ours = json.loads(tokenizers.Tokenizer.from_str(_description("qwen2")).to_str())
    assert ours["normalizer"] == theirs["normalizer"]
    assert ours["pre_tokenizer"]["pretokenizers"][0] == theirs["pre_tokenizer"]["pretokenizers"][0]
    import inspect

    pattern = inspect.signature(converters.TikTokenConverter.__init__).parameters["pattern"].default
    assert gguf_tokenizer.CUTS["llama-bpe"][0]["pretokenizers"][0]["pattern"] == {"Regex": pattern}


def _description(cut):
    tok = gguf_tokenizer.load(fields(cut), "f")
    return tok.content.decode()


def test_no_mutation_of_the_fields_gives_more_than_an_error():
    """Tokens, kinds, merges, scores and ids changed for others: it is a tokenizer, or refused in one line."""
    draw, read = random.Random(0), 0
    spm = {"model": "llama", "scores": [-float(id) for id in range(len(TOKENS))], "token_type": [2, *KINDS[1:]], "merges": None}
    odd = [
        None,
        0,
        -1,
        2**64,
        0.5,
        float("nan"),
        "",
        "a",
        "▁",
        "\0",
        "<0x41>",
        "a b",
        "h e",
        True,
        [],
        [1],
        ["x"],
        "é" * 999,
        "<|end|>",
        "{{",
    ]
    for trial in range(600):
        found = fields(draw.choice(sorted(gguf_tokenizer.CUTS)), **(spm if trial % 2 else {}), bos_token_id=0, add_bos_token=True)
        for _ in range(draw.choice((1, 1, 3))):
            key = draw.choice(sorted(found))
            if isinstance(found[key], list) and found[key] and draw.random() < 0.8:
                found[key] = list(found[key])
                found[key][draw.randrange(len(found[key]))] = draw.choice(odd[1:14])
            else:
                found[key] = draw.choice(odd)
        try:
            tok = gguf_tokenizer.load(found, "f.gguf")
            tok.decode(tok.encode(HOSTILE) + tok.encode_marked(HOSTILE))
            read += 1
        except DataError as error:
            assert "Try: " in str(error) and "\n" not in str(error) and len(str(error)) < 1000
    assert 50 < read < 500
