"""What stands beside a tokenizer: special tokens and their roles, ends, chat templates; and tokenizers of other projects by their shape."""

import json

import pytest
import tokenizers

from mtnlg.core.errors import DataError
from mtnlg.data import byte_level, companions, hf_files, tokenizer

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
TOKENS = [*byte_level.LETTERS, "he", "ll", "hell"]
MERGES = [["h", "e"], ["l", "l"], ["he", "ll"]]


def bos_first(token, id):
    """Llama 3's post-processor."""
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}]}
    template["special_tokens"] = {token: {"id": token, "ids": [id], "tokens": [token]}}
    plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return {"type": "Sequence", "processors": [plain, template]}


def write_json(folder, specials, change=lambda description: None, drop=()):
    """A byte-level tokenizer.json with these special tokens behind its 259 others."""
    tokens = [token for token in TOKENS if token not in drop]
    description = json.loads(byte_level.description(json.dumps({t: i for i, t in enumerate(tokens)}).encode(), b"", "here"))
    description["model"] = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": MERGES}
    added = [{"id": len(tokens) + i, "content": t, "special": True} | FLAGS for i, t in enumerate(specials)]
    description["added_tokens"] = added
    change(description)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return folder


def write(folder, **contents):
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_llama3_begins_with_what_its_post_processor_puts_there(tmp_path):
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    write_json(tmp_path, names, lambda d: d.update(post_processor=bos_first(names[0], 259)))
    base = tokenizer.load(tmp_path)
    assert (base.start_ids, base.eod_id, base.end_ids) == ((259,), 260, {260})
    write(tmp_path, tokenizer_config={"eos_token": "<|eot_id|>"}, generation_config={"eos_token_id": [260, 261]})
    chat = tokenizer.load(tmp_path)
    assert (chat.start_ids, chat.eod_id, chat.end_ids) == ((259,), 261, {260, 261})
    assert chat.encode("hell") == [258]  # and nothing is put before what is encoded


def test_a_start_that_is_no_token_is_refused(tmp_path):
    write_json(tmp_path, ["<|end_of_text|>"], lambda d: d.update(post_processor=bos_first("<|end_of_text|>", 999)))
    with pytest.raises(DataError, match=r"the id 999 begins or ends a text, and the vocabulary has 260 tokens .*Try: "):
        tokenizer.load(tmp_path)


def test_qwen_ends_turns_and_documents_differently(tmp_path):
    write(write_json(tmp_path, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), generation_config={"eos_token_id": [261, 259]})
    tok = tokenizer.load(tmp_path)
    assert (tok.start_ids, tok.end_ids) == ((), {259, 261})


def test_an_end_with_a_name_of_its_own(tmp_path):
    """DeepSeek's, say: only its companions know it."""
    write_json(tmp_path, ["<begin>", "<finis>"])
    with pytest.raises(DataError, match="no end of document"):
        tokenizer.load(tmp_path)
    for beside in (
        {"tokenizer_config": {"eos_token": {"content": "<finis>", "lstrip": False}}},
        {"generation_config": {"eos_token_id": 260}},
    ):
        write(tmp_path, **beside)
        assert tokenizer.load(tmp_path).eod_id == 260
        for path in tmp_path.glob("*_config.json"):
            path.unlink()


def test_opt(tmp_path):
    """vocab.json and merges.txt, whose end is </s>, and a text begins with it."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *TOKENS]
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\n")
    write(tmp_path, tokenizer_config={"bos_token": {"content": "</s>"}, "eos_token": {"content": "</s>"}, "add_bos_token": True})
    tok = tokenizer.load(tmp_path)
    assert (tok.vocab_size, tok.eod_id, tok.start_ids, tok.end_ids) == (len(tokens), 2, (2,), {2})
    assert tok.decode(tok.encode("hell</s>")) == "hell</s>" and 2 not in tok.encode("</s>")
    tok.save(tmp_path / "saved")
    assert tokenizer.load(tmp_path / "saved").start_ids == (2,)
    (tmp_path / "out").mkdir()
    for name, content in hf_files.files(tok, 64).items():
        (tmp_path / "out" / name).write_bytes(content)
    alone = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert alone.encode("hell").ids == [2, *tok.encode("hell")]


def test_a_start_that_is_not_the_end(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(["<s>", "</s>", *TOKENS])}))
    (tmp_path / "merges.txt").write_text("h e\nl l\nhe ll\n")
    assert tokenizer.load(tmp_path).start_ids == ()
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    tok = tokenizer.load(tmp_path)
    assert (tok.start_ids, tok.eod_id, tok.special_ids) == ((0,), 1, {"<s>": 0, "</s>": 1})
    write(tmp_path, tokenizer_config={"bos_token": "<nowhere>", "add_bos_token": True})
    assert tokenizer.load(tmp_path).start_ids == ()


def test_a_tokenizer_json_says_itself_what_begins_a_text(tmp_path):
    """As in transformers: without a post-processor nothing does, whatever is beside it."""
    write_json(tmp_path, ["<s>", "</s>"])
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    assert tokenizer.load(tmp_path).start_ids == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "GPT2Tokenizer", None])
def test_transformers_begins_with_the_same(tmp_path, name):
    """From OPT's files, as they come and as they go out; and from a tokenizer.json without a post-processor."""
    transformers = pytest.importorskip("transformers")
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *TOKENS]
    said = {"bos_token": "</s>", "eos_token": "</s>", "add_bos_token": True} | ({"tokenizer_class": name} if name else {})
    write(tmp_path, vocab={token: id for id, token in enumerate(tokens)}, tokenizer_config=said, config={"model_type": "opt"})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\n")
    tok = tokenizer.load(tmp_path)
    (tmp_path / "out").mkdir()
    for file, content in hf_files.files(tok, 64).items():
        (tmp_path / "out" / file).write_bytes(content)
    write(tmp_path / "out", config={"model_type": "opt"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.encode("hell") == [*tok.start_ids, *tok.encode("hell")] == [2, tok.vocab_size - 1]
    write(write_json(tmp_path / "json", ["<s>", "</s>"]), tokenizer_config=said | {"bos_token": "<s>"}, config={"model_type": "opt"})
    tok, theirs = tokenizer.load(tmp_path / "json"), transformers.AutoTokenizer.from_pretrained(tmp_path / "json")
    assert theirs.encode("hell") == [*tok.start_ids, *tok.encode("hell")]


def test_pythia_has_runs_of_spaces_as_added_tokens(tmp_path):
    def change(description):
        description["normalizer"] = {"type": "NFC"}
        description["added_tokens"].append({"id": 260, "content": "   ", "special": False} | FLAGS)

    tok = tokenizer.load(write_json(tmp_path, ["<|endoftext|>"], change))
    assert (tok.eod_id, tok.start_ids, tok.vocab_size) == (259, (), 261)
    assert tok.encode("a   b")[1] == 260 and tok.decode(tok.encode("a   b")) == "a   b"
    assert tok.special_ids == {"<|endoftext|>": 259}


def test_smollm_lacks_bytes_that_are_hardly_ever_in_a_text(tmp_path):
    letters = {byte: letter for letter, byte in byte_level.LETTERS.items()}
    lacking = [letters[byte] for byte in (0x04, 0x06, 0x1D, 0xC0, 0xF1, 0xF5, 0xFF)]
    tok = tokenizer.load(write_json(tmp_path, ["<|endoftext|>"], drop=lacking))
    assert tok.decode(tok.encode("a\x04b é中\U0001f642")) == "ab é中\U0001f642"
    write_json(tmp_path, ["<|endoftext|>"], drop=[letters[0xE4]])
    with pytest.raises(DataError, match="1 of the 256 byte letters"):
        tokenizer.load(tmp_path)


def train_llama(folder, **options):
    """A SentencePiece model with the settings of Llama's."""
    import sentencepiece

    with open(folder / "tokenizer.model", "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat, [INST] said the user [/INST]"] * 9),
            model_writer=writer,
            vocab_size=300,
            byte_fallback=True,
            model_type="bpe",
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
            **options,
        )
    return folder


def test_a_sentencepiece_model_says_nothing_of_its_start_but_its_companion_does(tmp_path):
    train_llama(tmp_path)
    assert tokenizer.load(tmp_path).start_ids == ()
    write(tmp_path, tokenizer_config={"bos_token": "<s>"})
    assert tokenizer.load(tmp_path).start_ids == ()
    write(tmp_path, tokenizer_config={"bos_token": "<s>", "add_bos_token": True})
    tok = tokenizer.load(tmp_path)
    assert (tok.start_ids, tok.eod_id, tok.end_ids) == ((1,), 2, {2})


def test_special_tokens_are_found_in_what_a_template_writes_and_nowhere_else(tmp_path):
    (tmp_path / "spm").mkdir()
    written = write_json(tmp_path / "json", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    cases = {written: "<|im_start|>hell<|im_end|>\n", train_llama(tmp_path / "spm"): "<s>the cat</s><s> a"}
    for folder, text in cases.items():
        tok = tokenizer.load(folder)
        special = set(tok.special_ids.values())
        ids = tok.encode_marked(text)
        found = [id for id in ids if id in special]
        assert len(found) == text.count("<|im") + text.count("s>")
        assert not special & set(tok.encode(text)) and tok.decode(tok.encode(text)) == text
        assert tok.encode(text) == tok.encode(text)  # what was marked before leaves nothing behind
    assert tokenizer.load(written).encode_marked("<|im_start|>hell<|im_end|>\n") == [260, 258, 261, TOKENS.index("Ċ")]


def test_companions_are_saved_with_the_tokenizer_wherever_it_goes(tmp_path):
    folder = write_json(tmp_path / "a", ["<|endoftext|>", "<|im_end|>"])
    write(folder, tokenizer_config={"eos_token": "<|im_end|>"}, generation_config={"eos_token_id": [259, 260]}, config={"x": 1})
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    path = tokenizer.load(folder).save(tmp_path / "b")
    names = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert {p.name for p in (tmp_path / "b").iterdir()} == names
    assert all((tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes() for name in names - {"tokenizer.json"})
    for place in (path, path.parent):
        again = tokenizer.load(place)
        assert (again.eod_id, again.end_ids, again.companions.template) == (260, {259, 260}, "{{ messages }}\r\n")


def test_the_template_is_a_file_or_a_setting(tmp_path):
    write(tmp_path, tokenizer_config={"chat_template": "one", "pad_token": None, "unk_token": 3}, special_tokens_map={"bos_token": "<s>"})
    found = companions.read(tmp_path)
    assert (found.template, found.tokens) == ("one", {"bos_token": "<s>"})
    several = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    write(tmp_path, tokenizer_config={"chat_template": several})
    assert companions.read(tmp_path).template == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert companions.read(tmp_path).template == "four"
    assert companions.read(tmp_path / "nowhere") == companions.NONE


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("special_tokens_map.json", "[" * 100_000),
        ("generation_config.json", b"\xff"),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("generation_config.json", '{"eos_token_id": [-1]}'),
        ("generation_config.json", '{"eos_token_id": [true]}'),
        ("generation_config.json", '{"eos_token_id": 99999}'),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", " " * (companions.MAX_BYTES + 1)),
    ],
)
def test_damaged_companions_are_named(tmp_path, name, content):
    write_json(tmp_path, ["<|endoftext|>"])
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"{name}.*Try: ") as caught:
        tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("id", [10**30, 1 << 22, -1, True, "2"])
def test_an_end_that_no_vocabulary_has(tmp_path, id):
    write(write_json(tmp_path, ["</s>"]), generation_config={"eos_token_id": [259, id]})
    with pytest.raises(DataError, match=r"eos_token_id=.*generation_config\.json in .*Try: "):
        tokenizer.load(tmp_path)


def test_templates_with_names_of_any_kind(tmp_path):
    named = [
        {"name": ["x"], "template": "no"},
        {"template": "no"},
        3,
        {"name": "default", "template": "yes"},
        {"name": {}, "template": "no"},
    ]
    write(tmp_path, tokenizer_config={"chat_template": named})
    assert companions.read(tmp_path).template == "yes"
    write(tmp_path, tokenizer_config={"chat_template": named[:3]})
    assert companions.read(tmp_path).template is None
