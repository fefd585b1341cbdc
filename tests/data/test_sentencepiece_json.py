"""tokenizer.json of a SentencePiece model: the ids that SentencePiece gives, on text that is not meant well."""

import json
import pathlib
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from mtnlg.core.errors import DataError
from mtnlg.data import sentencepiece_json, tokenizer
from tests.data.test_companions import train_llama, write
from tests.data.test_tokenizer import TEXT

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data"
MODELS = ["bpe", "unigram", "llama"]
FOREIGN = ["tokenizers/llama2_sp/tokenizer.model", "tokenizers/mistral_v1_sp/tokenizer.model.v1", "models/stories15M/tokenizer.model"]
HOSTILE = [
    "",
    " ",
    "\n",
    "  a   b    c     d \t\t\n\n\n  \r\n",
    "aaaaaaaaaaa abababababa aabaabaab    ▁▁ ▁",
    "<s></s><unk><0x0A><|endoftext|> <0xE2><0x96",
    "中文的字。\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 é e\u0301 \ufeff\u3000\xa0\x00\x7f\ufffd\ue000",
    "def f(x):\n    return x + 1\n\n\n",
    "[INST] <<SYS>>\nthe user\n<</SYS>>\n\nsaid [/INST]",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (ours, its tokenizer.json in the library, SentencePiece itself)."""
    folder = tmp_path_factory.mktemp("spm")
    ours = {
        "bpe": tokenizer.train([TEXT], folder / "bpe.model", kind="bpe", vocab_size=380, max_bytes=10**6),
        "unigram": tokenizer.train([TEXT], folder / "unigram.model", kind="unigram", vocab_size=310, max_bytes=10**6),
        "llama": tokenizer.load(train_llama(folder) / "tokenizer.model"),
    }
    return {name: trio(one) for name, one in ours.items()}


def trio(ours):
    library = tokenizers.Tokenizer.from_str(sentencepiece_json.description(ours).decode())
    library.encode_special_tokens = True
    return ours, library, sentencepiece.SentencePieceProcessor(model_proto=ours.content)


def require_same_ids(ids, wanted, oracle):
    """The same; of a Unigram model, whose sums of scores SentencePiece rounds to float32, also a path that is as good."""
    if ids != wanted:
        assert is_unigram(oracle)
        scores = [sum(map(oracle.get_score, path)) for path in (ids, wanted)]
        assert abs(scores[0] - scores[1]) < 1e-3 and not any(map(oracle.is_control, ids))


def is_unigram(oracle):
    from sentencepiece import sentencepiece_model_pb2

    spec = sentencepiece_model_pb2.ModelProto.FromString(oracle.serialized_model_proto()).trainer_spec
    return spec.model_type == spec.UNIGRAM


def require_same(ours, library, oracle, text):
    ids = library.encode(text, add_special_tokens=False).ids
    require_same_ids(ids, oracle.encode(text), oracle)
    assert library.decode(ids) == oracle.decode(ids) or "▁" in text or "\x00" in text
    if "▁" not in text:
        require_same_ids(ids, ours.encode(text), oracle)
        assert library.decode(ids) == text


@pytest.mark.parametrize("name", MODELS)
@given(text=st.text() | st.text(alphabet="ab \n▁<s>0x1Acdeht中") | st.text(alphabet=sorted(set(TEXT)), max_size=60))
@example(text="\n".join(HOSTILE))
@example(text=TEXT[:800])
def test_the_same_ids_as_sentencepiece(made, name, text):
    require_same(*made[name], text)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(made, name, text):
    require_same(*made[name], text)


@pytest.mark.parametrize("name", MODELS)
def test_pieces_in_any_order(made, name):
    """Where one piece may be made in several ways, the order of merges shows."""
    ours, library, oracle = made[name]
    draw = random.Random(0)
    texts = [ours.decode([id]) for id in range(ours.vocab_size)]
    for _ in range(2000):
        require_same(ours, library, oracle, "".join(draw.choices(texts, k=6)).replace("\ufffd", "?").replace("▁", "_"))


@pytest.mark.parametrize("path", FOREIGN)
def test_models_of_other_projects(path, tmp_path):
    if not (SHARED / path).is_file():
        pytest.skip(f"{path} is not here")
    (tmp_path / "tokenizer.model").write_bytes((SHARED / path).read_bytes())
    three = trio(tokenizer.load(tmp_path))
    draw = random.Random(1)
    texts = [three[0].decode([id]) for id in range(three[0].vocab_size)]
    for text in [*HOSTILE, TEXT[:2000], *("".join(draw.choices(texts, k=8)) for _ in range(1000))]:
        require_same(*three, text.replace("▁", "_").replace("\ufffd", "?"))


@pytest.mark.parametrize("name", MODELS)
def test_our_loader_reads_it_too(made, name, tmp_path):
    ours = made[name][0]
    (tmp_path / "tokenizer.json").write_bytes(sentencepiece_json.description(ours))
    again = tokenizer.load(tmp_path)
    assert (again.vocab_size, again.eod_id, again.start_ids) == (ours.vocab_size, ours.eod_id, ours.start_ids)
    text = "".join(HOSTILE).replace("▁", "")
    require_same_ids(again.encode(text), ours.encode(text), made[name][2])
    assert again.decode(again.encode(text)) == text


def test_what_begins_a_text_is_said(tmp_path):
    write(train_llama(tmp_path), tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    ours = tokenizer.load(tmp_path)
    found = sentencepiece_json.files(ours)
    library = tokenizers.Tokenizer.from_str(found["tokenizer.json"].decode())
    assert library.encode("the cat").ids == [1, *ours.encode("the cat")]
    assert library.encode("the cat", "a").ids == [1, *ours.encode("the cat"), 1, *ours.encode("a")]
    assert found["tokenizer_config.json"] == (tmp_path / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize("options", [{"user_defined_symbols": ["[INST]"]}, {"treat_whitespace_as_suffix": True}])
def test_what_would_not_be_exact_is_refused(tmp_path, options):
    with pytest.raises(DataError, match=r"no exact tokenizer\.json \(tokenizer\.model\)\. Try: "):
        sentencepiece_json.files(tokenizer.load(train_llama(tmp_path, **options)))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_folder(made, name, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = made[name][0]
    ours.save(tmp_path)
    for file, content in sentencepiece_json.files(ours).items():
        (tmp_path / file).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == ours.eod_id and json.loads((tmp_path / "tokenizer_config.json").read_text())
    specials = tuple(ours.special_ids)
    for text in HOSTILE:
        for special in (*specials, "<unk>", "▁"):
            text = text.replace(special, "")
        require_same_ids(theirs.encode(text), ours.encode(text), made[name][2])
        assert theirs.decode(ours.encode(text)) == text
