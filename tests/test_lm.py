"""Text in; text, scores and vectors out, from a run's folder that was never trained; and what is said when it is not whole."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtnlg import lm, weights
from mtnlg.checkpoint import Checkpoints
from mtnlg.core import config as configs
from mtnlg.core import manifest, schema
from mtnlg.core.errors import ConfigError, DataError, MissingInput
from mtnlg.data import byte_level
from mtnlg.data import tokenizer as tokenizers
from mtnlg.infer.engine import Engine
from mtnlg.infer.request import Token
from mtnlg.infer.text import Event
from mtnlg.model import transformer
from mtnlg.parallel import mesh as meshes
from mtnlg.text_engine import TextEngine
from mtnlg.train import state as states

TEXT = "the cat sat on the mat, and the dog lay under the table.\n" * 5
CONFIG = schema.Config(model=schema.Model(num_layers=1, d_model=8, num_heads=2, vocab_size=400, seq_len=48))  # the tokenizer has 300
STEP = 3


def write_run(folder, config=CONFIG, meta=()):
    """A run's folder as training leaves it: tokenizer and one checkpoint."""
    tokenizer = tokenizers.train([TEXT], folder / "tokenizer" / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
    state = states.make(config, meshes.make(config.mesh))
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=1)
    made = {"step": STEP, "config": configs.to_nested(config), "tokenizer_sha256": tokenizer.sha256}
    checkpoints.save(STEP, state.params, state.optimizer, made | dict(meta))
    checkpoints.wait()
    return folder, state.params


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("lm") / "run")


@pytest.fixture(scope="module")
def model(written):
    return lm.from_pretrained(written[0])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A run whose model has an opinion, and its parameters."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, init_std=1.0))
    return write_run(tmp_path_factory.mktemp("wide") / "run", config)


@pytest.fixture
def run(written, tmp_path):
    """A copy to damage."""
    return shutil.copytree(written[0], tmp_path / "run")


class Speaker(Engine):
    """An engine that says the same ids, whatever it is asked."""

    def __init__(self, engine, ids):
        self.config, self.context, self.num_ids, self._ids = engine.config, engine.context, engine.num_ids, ids
        self._requests, self._untold = {}, []

    def submit(self, request):
        self._requests[len(self._requests)] = [request, 0]
        return len(self._requests) - 1

    def cancel(self, number):
        self._requests.pop(number, None)

    def _numbers_awaited(self):
        return set(self._requests)

    @property
    def busy(self):
        return bool(self._requests)

    def step(self):
        events = []
        for number, (request, count) in list(self._requests.items()):
            id, self._requests[number][1] = self._ids[count], count + 1
            finish = "stop" if id in request.stop_ids else "length" if count + 1 in (request.max_new_tokens, len(self._ids)) else None
            events.append(Event(number, Token(id), finish, 0))
            if finish is not None:
                self.cancel(number)
        return events


def spoken(model, monkeypatch, ids):
    """The model, which now says these ids, whatever it is asked."""
    monkeypatch.setattr(model, "engine", Speaker(model.engine, ids))
    monkeypatch.setattr(model, "texts", TextEngine(model.tokenizer, model.engine))
    return model


def stacked(engine):
    """Its parameters as they are stored: the blocks of all layers together."""
    blocks = engine.params["blocks"]
    whole = jax.tree.map(lambda *layers: np.stack(layers), *blocks) if isinstance(blocks, tuple) else blocks
    return engine.params | {"blocks": whole}


# Text


@pytest.mark.parametrize("place", [".", "checkpoints", f"checkpoints/{STEP}"])
def test_a_run_its_checkpoints_or_one_of_them(written, place):
    folder, params = written
    found = lm.from_pretrained(folder / place)
    jax.tree.map(np.testing.assert_array_equal, stacked(found.engine), params)
    assert found.engine.config == dataclasses.replace(CONFIG, mesh=schema.Mesh(zero=0))


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"seed": 1}, {"temperature": 2.0, "seed": 2}])
def test_stream_complete_and_generate_agree(model, sampling):
    pieces = list(model.stream("the cat", max_new_tokens=20, **sampling))
    text = model.complete("the cat", max_new_tokens=20, **sampling)
    ids = model.generate(model.tokenizer.encode("the cat"), max_new_tokens=20, **sampling)
    assert "".join(pieces) == text == model.tokenizer.decode(ids)
    assert len(pieces) > 1 and all(pieces)


def test_texts_that_take_turns_are_those_alone(model):
    """Whoever asks for the next piece brings the others on as well."""
    alone = [model.complete("the cat", max_new_tokens=length, seed=length) for length in (9, 4)]
    pairs = itertools.zip_longest(*(model.stream("the cat", max_new_tokens=length, seed=length) for length in (9, 4)), fillvalue="")
    assert ["".join(pieces) for pieces in zip(*pairs, strict=True)] == alone


def test_no_prompt_starts_a_document(model):
    ids = model.generate([model.tokenizer.eod_id], max_new_tokens=5)
    assert model.complete("", max_new_tokens=5) == model.tokenizer.decode(ids)


def test_the_end_of_the_document_ends_the_text(model, monkeypatch):
    ids = [*model.tokenizer.encode("the cat"), model.tokenizer.eod_id, *model.tokenizer.encode(" sat")]
    assert spoken(model, monkeypatch, ids).complete("a", max_new_tokens=len(ids)) == "the cat"
    assert model.tokenizer.decode(model.generate([5], max_new_tokens=len(ids))) == "the cat"


def test_any_of_the_tokenizers_ends_ends_the_text(model, monkeypatch):
    other = model.tokenizer.encode("dog")[-1]
    monkeypatch.setattr(model.tokenizer, "end_ids", frozenset({model.tokenizer.eod_id, other}))
    ids = [*model.tokenizer.encode("the cat"), other, *model.tokenizer.encode(" sat")]
    assert spoken(model, monkeypatch, ids).complete("a", max_new_tokens=len(ids)) == "the cat"
    assert "".join(model.stream([5], max_new_tokens=len(ids))) == "the cat"
    assert model.tokenizer.decode(model.generate([5], max_new_tokens=len(ids))) == "the cat"


def byte_ids(model, text):
    """One piece for every byte."""
    ids = {model.tokenizer.decode_bytes([id]): id for id in reversed(range(model.tokenizer.vocab_size))}
    return [ids[bytes([byte])] for byte in text.encode()]


def cut(text, stop):
    """The text before the first stop string, letter by letter."""
    for end in range(len(text) + 1):
        places = [text[:end].find(s) for s in stop if s in text[:end]]
        if places:
            return text[: min(places)]
    return text


@given(text=st.text("ab中é\U0001f642", max_size=12), stop=st.lists(st.text("ab中é", min_size=1, max_size=4), max_size=2))
@example(text="aab", stop=["ab"])  # the stop string begins inside what looked like its beginning
@example(text="aba", stop=["abab"])  # the end of the text is the beginning of a stop string: it is text
@example(text="中文é", stop=[])
def test_stop_strings_and_characters_are_whole(model, text, stop):
    """Even when each byte is a token: no piece holds half a character or a part of the stop string."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        ids = byte_ids(model, text)
        pieces = list(spoken(model, monkeypatch, [*ids, model.tokenizer.eod_id]).stream("a", stop, max_new_tokens=len(ids) + 1))
    assert "".join(pieces) == cut(text, stop)
    assert all(pieces) and "\ufffd" not in "".join(pieces)


def test_a_piece_is_given_out_as_soon_as_it_can_be(model, monkeypatch):
    ids = byte_ids(model, "xé st. stop it")
    assert list(spoken(model, monkeypatch, ids).stream("a", ["stop"], max_new_tokens=99)) == ["x", "é", " ", "st.", " "]


def test_the_first_of_two_stop_strings_in_one_piece(model, monkeypatch):
    longest = max(range(model.tokenizer.vocab_size), key=lambda id: len(model.tokenizer.decode([id])))
    first, second, third, *_ = model.tokenizer.decode([longest])
    assert len({first, second, third}) == 3
    assert spoken(model, monkeypatch, [longest]).complete("a", [third, second], max_new_tokens=9) == first


def test_a_character_cut_off_by_max_new_tokens_is_marked(model, monkeypatch):
    assert spoken(model, monkeypatch, byte_ids(model, "a中")).complete("a", max_new_tokens=3) == "a\ufffd"


def test_any_end_ends_the_text(model, monkeypatch):
    other = model.tokenizer.encode("sat")[0]
    monkeypatch.setattr(model.tokenizer, "end_ids", frozenset({model.tokenizer.eod_id, other}))
    ids = [*model.tokenizer.encode("the cat"), other, *model.tokenizer.encode(" on")]
    assert spoken(model, monkeypatch, ids).complete("a", max_new_tokens=len(ids)) == "the cat"
    assert model.tokenizer.decode(model.generate([5], max_new_tokens=len(ids))) == "the cat"


def test_a_prompt_begins_as_texts_do(model, monkeypatch):
    monkeypatch.setattr(model.tokenizer, "start_ids", (7, 8))
    for prompt in ("the cat", ""):
        ids = model.generate([7, 8, *model.tokenizer.encode(prompt)], max_new_tokens=5)
        assert model.complete(prompt, max_new_tokens=5) == model.tokenizer.decode(ids)


# Scores and vectors

SPREAD = [{"data": 2, "tensor": 2}, {"context": 2}, {"tensor": 2, "sequence_parallel": True}, {"data": 2, "zero": 3}]
PROMPT, CONTINUATION, LONG = "the cat sat on", " the mat, and", TEXT * 2  # LONG has more tokens than the model has places


def plain(params, ids):
    """(hidden states [L, D], log-probabilities [L, V]) of one row, from whole logits."""
    fields = {"tokens": [ids], "positions": [range(len(ids))], "segment_ids": [[1] * len(ids)]}
    with jax.default_matmul_precision("float32"):
        x_LD = transformer.hidden(CONFIG.model, params, {name: jnp.array(values) for name, values in fields.items()})[0][0]
        logits_LV = x_LD @ params["embedding"]["tokens"].T
    return np.array(x_LD), np.array(jax.nn.log_softmax(logits_LV[:, : CONFIG.model.vocab_size].astype(jnp.float32)))


def by_tokens(params, ids):
    """The log-probability of each token but the first."""
    return np.take_along_axis(plain(params, ids)[1][:-1], np.array(ids)[1:, None], axis=1)[:, 0]


def test_a_score_is_the_sum_of_log_probabilities(wide):
    folder, params = wide
    model = lm.from_pretrained(folder)
    tok = model.tokenizer
    prompt, ids = tok.encode(PROMPT), tok.encode(PROMPT + CONTINUATION)
    assert ids[: len(prompt)] == prompt
    expected = by_tokens(params, [tok.eod_id, *ids])[len(prompt) :].sum()
    np.testing.assert_allclose(model.score(PROMPT, CONTINUATION), expected, rtol=1e-5)
    np.testing.assert_allclose(model.score("", PROMPT), by_tokens(params, [tok.eod_id, *prompt]).sum(), rtol=1e-5)
    np.testing.assert_allclose(model.loss(PROMPT), -by_tokens(params, [tok.eod_id, *prompt]).mean(), rtol=1e-5)
    assert abs(expected / (len(ids) - len(prompt)) + np.log(CONFIG.model.vocab_size)) > 1, "it has no opinion"


def test_vectors_are_means_or_the_last(wide):
    folder, params = wide
    model = lm.from_pretrained(folder)
    texts = ["the", PROMPT, "a dog, a cat and a table"]
    states = [plain(params, model.tokenizer.encode(text))[0] for text in texts]
    for pool, expected in (("mean", [x.mean(0) for x in states]), ("last", [x[-1] for x in states])):
        found = model.encode(texts, pool=pool)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found, np.concatenate([model.encode([text], pool=pool) for text in texts]), rtol=1e-5, atol=1e-6)


def test_what_texts_begin_with_is_read_and_not_counted(wide, monkeypatch):
    folder, params = wide
    model = lm.from_pretrained(folder)
    monkeypatch.setattr(model.tokenizer, "start_ids", (7, 8))
    ids = [7, 8, *model.tokenizer.encode(PROMPT)]
    np.testing.assert_allclose(model.score("", PROMPT), by_tokens(params, ids)[1:].sum(), rtol=1e-5)
    np.testing.assert_allclose(model.loss(PROMPT), -by_tokens(params, ids)[1:].mean(), rtol=1e-5)
    np.testing.assert_allclose(model.encode([PROMPT])[0], plain(params, ids)[0][2:].mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mesh", SPREAD)
def test_scores_and_vectors_are_the_same_on_a_mesh(wide, mesh):
    alone, spread = lm.from_pretrained(wide[0]), lm.from_pretrained(wide[0], schema.Mesh(**mesh))
    assert len(alone.tokenizer.encode(LONG)) > 2 * CONFIG.model.seq_len
    pairs = [(PROMPT, CONTINUATION), ("", LONG), (LONG, CONTINUATION)]
    np.testing.assert_allclose(spread.score_many(pairs), [alone.score(*pair) for pair in pairs], rtol=1e-5)
    np.testing.assert_allclose(spread.loss(LONG), alone.loss(LONG), rtol=1e-5)
    for pool in ("mean", "last"):
        np.testing.assert_allclose(spread.encode(["the", LONG], pool), alone.encode(["the", LONG], pool), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_rounded_and_lie_as_such(wide, dtype):
    narrow, exact = lm.from_pretrained(wide[0], dtype=dtype), lm.from_pretrained(wide[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype)), stacked(narrow.engine), stacked(exact.engine))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(narrow.engine.params))
    assert narrow.loss(TEXT) != exact.loss(TEXT) and abs(narrow.loss(TEXT) - exact.loss(TEXT)) < 0.05 * exact.loss(TEXT)
    assert narrow.encode(["the"]).dtype == np.float32


@pytest.mark.parametrize(
    ("what", "line"),
    [
        (lambda model: model.score("the", ""), "there are no tokens to score in '' (text). Try: a text that is not empty"),
        (lambda model: model.loss(""), "there are no tokens to score in '' (text). Try: a text that is not empty"),
        (lambda model: model.encode(["the", ""]), "text 1 has no tokens (texts). Try: texts that are not empty"),
    ],
)
def test_empty_texts_are_refused(model, what, line):
    with pytest.raises(DataError) as caught:
        what(model)
    assert str(caught.value) == line


def test_what_cannot_be_asked(model, written):
    with pytest.raises(ConfigError, match="pool='first' is not one of mean, last"):
        model.encode(["the"], pool="first")
    with pytest.raises(ConfigError, match=r"Try: encode\(\[text\]\)"):
        model.encode("the")
    with pytest.raises(ConfigError, match="'float8' is not one of float32, bfloat16, float16, float64"):
        lm.from_pretrained(written[0], dtype="float8")
    with pytest.raises(ConfigError, match="JAX_ENABLE_X64=1 before the command"):
        lm.from_pretrained(written[0], dtype="float64")


# Where a continuation begins


def byte_tokenizer(folder, **changes):
    """GPT-2's kind with four merges; `changes` of its tokenizer.json."""
    vocabulary = [*byte_level.LETTERS, "he", "ll", "hell", "<|endoftext|>"]
    merges = "#version: 0.2\nh e\nl l\nhe ll\n"
    content = json.dumps({token: id for id, token in enumerate(vocabulary)}).encode(), merges.encode()
    description = json.loads(byte_level.description(*content, where="test")) | changes
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return tokenizers.load(folder)


@given(text=st.text("the catsdogé中", min_size=1, max_size=20), data=st.data())
def test_the_continuation_is_every_token_with_a_byte_of_it(model, text, data):
    tok, cut = model.tokenizer, data.draw(st.integers(0, len(text) - 1))
    (ids,), (first,) = lm.continuations(tok, [(text[:cut], text[cut:])])
    assert ids == [tok.eod_id, *tok.encode(text)]
    before, prompt = tok.decode_bytes(ids[:first]), text[:cut].encode()
    assert prompt.startswith(before) and len(before) + tok.piece_bytes[ids[first]] > len(prompt)


@pytest.mark.parametrize(("prompt", "continuation", "first"), [("h", "ell", 1), ("hell", "o", 2), ("o he", "ll", 3), ("", "he", 1)])
def test_a_token_with_bytes_of_both_is_the_continuations(tmp_path, prompt, continuation, first):
    tok = byte_tokenizer(tmp_path)
    assert lm.continuations(tok, [(prompt, continuation)]) == ([[tok.eod_id, *tok.encode(prompt + continuation)]], [first])


def test_a_prompt_that_what_follows_changes_is_encoded_apart(tmp_path):
    """A tokenizer that composes characters: e and an accent are one, with other bytes than both."""
    tok = byte_tokenizer(tmp_path, normalizer={"type": "NFC"})
    (ids, apart), firsts = lm.continuations(tok, [("cafe\u0301", " he"), ("cafe", "\u0301 he")])
    assert ids == [tok.eod_id, *tok.encode("caf\xe9 he")] and tok.decode(ids[firsts[0] :]) == " he"
    assert apart == [tok.eod_id, *tok.encode("cafe"), *tok.encode("\u0301 he")] and firsts[1] == 5


# A folder that is not whole


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def failure(path, kind):
    with pytest.raises(kind) as caught:
        lm.from_pretrained(path)
    return str(caught.value)


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_damage_to_any_file_of_a_checkpoint_is_noticed(run, damage):
    step = run / "checkpoints" / str(STEP)
    files = [path for path in step.rglob("*") if path.is_file() and path.name != manifest.NAME]
    assert len(files) > 5
    for path in files:
        before = path.read_bytes()
        if before:
            damage(path)
            assert str(path.relative_to(step)) in failure(run, DataError)
            path.write_bytes(before)
    lm.from_pretrained(run)


def test_a_damaged_manifest_is_noticed(run):
    flip(run / "checkpoints" / str(STEP) / manifest.NAME)
    assert "the checkpoint is damaged" in failure(run, DataError)


def test_no_checkpoint(tmp_path):
    assert failure(tmp_path, MissingInput) == f"there is no model ({tmp_path}). Try: {weights.WHAT_IS_READ}"
    assert "nothing is there" in failure(tmp_path / "nowhere", MissingInput)


def test_a_step_without_its_manifest_is_no_checkpoint(run):
    (run / "checkpoints" / str(STEP) / manifest.NAME).unlink()
    assert "there is no model" in failure(run, MissingInput)


def test_no_tokenizer(run):
    shutil.rmtree(run / "tokenizer")
    assert failure(run, MissingInput).startswith(f"the run has no tokenizer ({run / 'tokenizer'})")
    (run / "tokenizer").mkdir()
    assert "no tokenizer is there" in failure(run, MissingInput)


def test_another_tokenizer(run):
    tokenizers.train([TEXT[::-1]], run / "tokenizer" / "tokenizer.model", kind="bpe", vocab_size=300, max_bytes=10_000)
    assert "not the one the model was trained with" in failure(run, DataError)


@pytest.mark.parametrize("place", [0, 0.5, 0.999])
def test_a_damaged_tokenizer(run, place):
    path = run / "tokenizer" / "tokenizer.model"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert str(run / "tokenizer") in failure(run, DataError)


def test_a_config_of_another_version(tmp_path):
    write_run(tmp_path, meta={"config": {"model": {"num_layer": 1}}})
    line = failure(tmp_path, DataError)
    assert line.startswith("config of another version of mtnlg: there is no key 'model.num_layer'") and str(tmp_path) in line


def test_weights_in_float64_ask_for_64_bits(tmp_path):
    config = dataclasses.replace(CONFIG, train=schema.Train(param_dtype="float64"))
    with jax.enable_x64(True):
        write_run(tmp_path, config)
        lm.from_pretrained(tmp_path)
    assert failure(tmp_path, ConfigError).endswith("Try: JAX_ENABLE_X64=1 before the command")


def test_prompts_are_ids_and_ids_are_no_text(model):
    """`generate` after `prompt_ids` writes what `complete` does, of whatever kind the ids are."""
    ids = model.prompt_ids("the cat")
    settings = {"max_new_tokens": 6, "temperature": 0}
    written = model.tokenizer.decode_bytes(model.generate(np.array(ids), **settings)).decode("utf-8", "replace")
    assert written == model.complete("the cat", **settings)
    with pytest.raises(ConfigError, match="a text where ids are expected"):
        model.generate("the cat")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda m: m.complete("x", foo=1), "there is no setting 'foo' here (foo). Try: one of max_new_tokens, temperature, "),
        (lambda m: m.complete("x", logprobs=2), "there is no setting 'logprobs' here (logprobs). Try: num_likeliest="),
        (lambda m: m.complete("x", tempreature=2), "there is no setting 'tempreature' here (tempreature). Try: temperature="),
        (lambda m: next(m.answer_many([lm.Ask("x", sampling={"prompt": [1]})])), "there is no setting 'prompt' here"),
        (lambda m: m.answer("x", stop_strings=["a"]), 'Try: lm.answer(prompt, stop=["TEXT"])'),
        (lambda m: m.generate([1], stop=["a"]), "there is no setting 'stop' here (stop). Try: lm.answer(prompt, stop="),
        (lambda m: m.complete("x", truncate="left"), 'Try: lm.answer(prompt, truncate="left")'),
        (lambda m: m.answer("x", truncate="lefft"), "truncate='lefft' is not one of error, left, middle (truncate). Try: truncate=left"),
        (lambda m: m.answer("x", keep=3), "keep=3 keeps nothing where nothing is cut (keep). Try: truncate=left or truncate=middle"),
        (lambda m: m.complete("the " * 99), "exceed the context of 48 (prompt). Try: truncate=left"),
        (lambda m: m.complete("x", max_new_tokens=99), "Try: max_new_tokens=47 or slide=True"),
        (lambda m: m.complete("x", stop=["a", ""]), "an empty stop text ends nothing (stop)"),
    ],
)
def test_a_wrong_setting_is_told_with_the_right_one(model, ask, said):
    with pytest.raises(ConfigError) as caught:
        ask(model)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_one_stop_text_is_not_its_letters(model):
    settings = {"max_new_tokens": 20, "seed": 1}
    whole = model.complete("the cat", **settings)
    stop = whole[5:9]
    assert (
        model.complete("the cat", stop=stop, **settings) == model.complete("the cat", stop=[stop], **settings) == whole[: whole.find(stop)]
    )
