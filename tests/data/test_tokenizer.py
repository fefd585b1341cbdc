import hashlib
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtnlg.core.errors import CannotWrite, DataError, MissingInput, TemporaryFailure
from mtnlg.data import tokenizer

TEXT = (
    "def f(x):\n    if x:\n        return x + 1\n\n    return [f(y) for y in range(10)]\n\n\n"
    "The cat sat on the mat, and the dog lay under the table. 中文的字。 ▁ <s> <|endoftext|> \t \0 ▅\n"
) * 20
TRICKY = "".join(["\n\n\t\r\n  \0ﬁ\ufffd <s></s><unk><0x0A><|endoftext|>▁ ▁▁\u2585\ue000é中文\U0001f642  ", "\u3000\xa0\ufeff "])


def byte_letters():
    """GPT-2's encoder.py, bytes_to_unicode, written another way."""
    letters, extra = [], 256
    for byte in range(256):
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        letters.append(chr(byte if printable else extra))
        extra += not printable
    return letters


def write_gpt2(folder, *, end=True, drop=()):
    merges = ["h e", "l l", "he ll", "Ġ Ġ"]
    tokens = [letter for letter in byte_letters() if letter not in drop] + [merge.replace(" ", "") for merge in merges]
    tokens += ["<|endoftext|>"] * end
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bpe": tokenizer.train([TEXT], folder / "bpe.model", kind="bpe", vocab_size=380, max_bytes=10**6),
        "unigram": tokenizer.train([TEXT], folder / "unigram.model", kind="unigram", vocab_size=310, max_bytes=10**6),
        "gpt2": tokenizer.load(write_gpt2(folder / "gpt2")),
    }


KINDS = pytest.mark.parametrize("kind", ["bpe", "unigram", "gpt2"])


@KINDS
@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.text(alphabet="▁ \n\t<s>|endoftx\0中\ufffd"))
@example(text=TRICKY)
@example(text="▁")
@example(text=TEXT)
def test_any_text_comes_back_exactly(made, kind, text):
    tok = made[kind]
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert tok.decode_bytes(ids) == text.encode() == b"".join(tok.decode_bytes([id]) for id in ids)
    assert tok.eod_id not in ids and all(0 <= id < tok.vocab_size for id in ids)


@KINDS
def test_batches_equal_single_texts(made, kind):
    texts = ["hello", "", "▁a▁", TRICKY, "中"]
    assert made[kind].encode_batch(texts) == [made[kind].encode(text) for text in texts]
    assert made[kind].encode_batch([]) == []


@KINDS
def test_special_tokens_have_no_bytes_and_ids_are_bounded(made, kind):
    tok = made[kind]
    assert tok.decode_bytes([tok.eod_id]) == b""
    assert tok.decode([*tok.encode("a"), tok.eod_id, *tok.encode("b")]) == "ab"
    for id in (-1, tok.vocab_size):
        with pytest.raises(IndexError):
            tok.decode_bytes([id])


@KINDS
def test_half_a_character_is_held_as_bytes(made, kind):
    tok = made[kind]
    ids = tok.encode("\U0001f642")
    assert len(ids) > 1 and tok.decode_bytes(ids[:1]) == "\U0001f642".encode()[:1]
    assert tok.decode(ids[:1]) == "\ufffd"


@KINDS
def test_save_and_load(made, kind, tmp_path):
    path = made[kind].save(tmp_path / "new" / "folder")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == made[kind].sha256
    for place in (path, path.parent, str(path)):
        again = tokenizer.load(place)
        assert (again.sha256, again.vocab_size, again.eod_id) == (made[kind].sha256, made[kind].vocab_size, made[kind].eod_id)
        assert again.encode(TRICKY) == made[kind].encode(TRICKY)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@KINDS
def test_a_lone_surrogate_is_refused(made, kind):
    with pytest.raises(DataError, match="the text is not Unicode.*Try: removing"):
        made[kind].encode("a\ud800b")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic_and_exact_in_size(made, kind, tmp_path):
    again = tokenizer.train(iter([TEXT]), tmp_path / "m.model", kind=kind, vocab_size=made[kind].vocab_size, max_bytes=10**6)
    assert again.sha256 == made[kind].sha256
    assert again.vocab_size == {"bpe": 380, "unigram": 310}[kind]
    assert tokenizer.load(tmp_path / "m.model").sha256 == again.sha256


def test_line_ends_with_indentation_and_runs_of_spaces_are_pieces(made):
    bpe = made["bpe"]
    pieces = {bpe.decode_bytes([id]) for id in range(bpe.vocab_size)}
    assert any(re.search(rb"\n {4}$", piece) for piece in pieces)
    assert any(re.fullmatch(rb"\n\n+ *", piece) or piece.endswith(b"\n\n") for piece in pieces)
    assert len(bpe.encode(TEXT)) < len(TEXT.encode()) / 3


def test_max_bytes_bounds_what_is_read(tmp_path):
    def texts():
        yield "aaaa bbbb aaaa bbbb " * 50
        raise AssertionError("read too far")

    tok = tokenizer.train(texts(), tmp_path / "m.model", kind="bpe", vocab_size=262, max_bytes=100)
    assert tok.vocab_size == 262


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("text, vocab_size, reason", [(TEXT, 100, "too many different"), ("the cat sat on the mat. " * 9, 9000, "too few")])
def test_an_unfitting_vocabulary_is_refused_with_one_that_fits(tmp_path, kind, text, vocab_size, reason):
    path = tmp_path / "m.model"
    with pytest.raises(DataError, match=rf"{reason}.*{re.escape(str(path))}.*Try: --config\.model\.vocab_size=\d+") as caught:
        tokenizer.train([text], path, kind=kind, vocab_size=vocab_size, max_bytes=10**6)
    assert not path.exists()
    named = int(re.search(r"model\.vocab_size=(\d+)", str(caught.value))[1])
    assert tokenizer.train([text], path, kind=kind, vocab_size=named, max_bytes=10**6).vocab_size == named


def test_nothing_to_train_on(tmp_path):
    for texts in ([], [""], ["\t\0"]):
        with pytest.raises(DataError, match=r"no text .*m\.model.*Try: a source"):
            tokenizer.train(texts, tmp_path / "m.model", kind="bpe", vocab_size=300, max_bytes=100)


def test_gpt2_by_hand(made):
    """Merged left to right by rank: h e, l l, he ll."""
    ids = made["gpt2"].encode("hello  hell")
    assert [made["gpt2"].decode_bytes([id]) for id in ids] == [b"hell", b"o", b" ", b" ", b"hell"]
    assert made["gpt2"].vocab_size == 261 and made["gpt2"].eod_id == 260


def test_gpt2_gets_an_end_of_document_when_it_lacks_one(tmp_path):
    tok = tokenizer.load(write_gpt2(tmp_path, end=False))
    assert (tok.vocab_size, tok.eod_id) == (261, 260)
    assert tok.eod_id not in tok.encode("<|endoftext|>")


def test_a_tokenizer_json_that_truncates_or_pads_is_read_whole(made, tmp_path):
    description = json.loads(made["gpt2"].save(tmp_path).read_text())
    description["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    description["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    description["added_tokens"][0]["special"] = False  # it would be found in the text
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    tok = tokenizer.load(tmp_path)
    assert len(tok.encode("a")) == 1
    assert tok.decode(tok.encode("a<|endoftext|>b")) == "a<|endoftext|>b" and tok.eod_id not in tok.encode("<|endoftext|>")


def test_a_foreign_sentencepiece_model_with_a_dummy_prefix(tmp_path):
    import sentencepiece

    with open(tmp_path / "foreign.model", "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 9),
            model_writer=writer,
            vocab_size=280,
            byte_fallback=True,
            model_type="bpe",
            minloglevel=2,
        )
    tok = tokenizer.load(tmp_path)
    ids = tok.encode("the cat</s>")
    assert tok.decode(ids) == "the cat</s>" and tok.decode_bytes(ids) == b" the cat</s>"
    assert tok.eod_id == 2 and tok.decode_bytes([1, 2]) == b""


def break_json(folder, change):
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["model"].update(merges=[["h", "q q"]]), "not a tokenizer"),
        (lambda d: d.pop("model"), "not a tokenizer"),
        (lambda d: d["model"]["vocab"].pop("!"), "1 of the 256 byte letters"),
        (lambda d: d.update(decoder=None), "neither spell bytes"),
        (lambda d: (d["model"]["vocab"].pop("<|endoftext|>"), d.update(added_tokens=[])), "no end of document"),
        (lambda d: d["model"]["vocab"].update(x9=2**31), "an id is 2147483648"),
    ],
)
def test_damaged_tokenizer_json(made, tmp_path, change, message):
    made["gpt2"].save(tmp_path)
    break_json(tmp_path, change)
    with pytest.raises(DataError, match=rf"{message}.*tokenizer\.json.*Try: "):
        tokenizer.load(tmp_path)


def test_damaged_files_are_named_with_a_cure(made, tmp_path):
    path = made["bpe"].save(tmp_path)
    for content in (b"", b"garbage", path.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a SentencePiece model .*tokenizer\.model.*Try: the whole"):
            tokenizer.load(path)
    write_gpt2(tmp_path / "g")
    for content in ("{", "[]", "{}", '{"a": "b"}'):
        (tmp_path / "g" / "vocab.json").write_text(content)
        with pytest.raises(DataError, match=r"not (GPT-2's files|a tokenizer).*/g.*Try: "):
            tokenizer.load(tmp_path / "g")
    write_gpt2(tmp_path / "h", drop=("a",))
    with pytest.raises(DataError, match=r"1 of the 256 byte letters.*/h.*Try: "):
        tokenizer.load(tmp_path / "h")


def test_what_is_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "no.model"):
        with pytest.raises(MissingInput, match=rf"no tokenizer is there \({path}\)\. Try: ") as caught:
            tokenizer.load(path)
        assert caught.value.exit_code == 66


def test_a_file_beyond_the_bound(tmp_path):
    with open(tmp_path / "big.model", "wb") as file:
        file.truncate(tokenizer.MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=r"more than 50000000 bytes .*big\.model.*Try: "):
        tokenizer.load(tmp_path)


def test_two_models_in_a_folder(tmp_path):
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 \.model files .*Try: .*a\.model"):
        tokenizer.load(tmp_path)


def test_a_place_that_cannot_be_written(made, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match=r"cannot write.*tokenizer\.model.*Try: "):
        made["bpe"].save(tmp_path / "file")


def test_a_full_disk_leaves_the_older_file_alone(made, tmp_path):
    path = made["bpe"].save(tmp_path)
    (tmp_path / "tokenizer.model.tmp").symlink_to("/dev/full")
    with pytest.raises(TemporaryFailure, match=r"\d+ bytes at least are needed, \d+ are free.*tokenizer\.model.*Try: "):
        made["unigram"].save(tmp_path)
    assert tokenizer.load(path).sha256 == made["bpe"].sha256
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
