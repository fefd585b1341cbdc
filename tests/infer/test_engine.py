"""Generation through the cache equals repeated whole forwards of the NumPy oracle; rows are independent; the cache stays in place."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import config_of
from numpy_gpt import init, logits
from test_numpy_gpt import LLAMA, MTNLG

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.infer.engine import Engine, Request
from mtnlg.infer.sampling import Sampling, sample
from mtnlg.model import cache as caches
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes

SEQ_LEN = 14
SPECS = {
    "learned": MTNLG,
    "rope, grouped heads, swiglu, rmsnorm": replace(LLAMA, num_kv_heads=2),
    "alibi, sliding window": replace(MTNLG, position="alibi", sliding_window=3, tied=False),
}
LENGTHS, NEW_TOKENS = (1, 5, 12), (12, 7, 2)  # the last row ends at the end of the learned positions, the others go on


@functools.cache
def make(name, seed=1):
    """(spec, the oracle's parameters, an engine on them)."""
    spec = SPECS[name]
    params = init(spec, SEQ_LEN, np.random.default_rng(seed))
    config = config_of(spec, SEQ_LEN, biases=True, compute_dtype="float32", param_dtype="float32")
    return spec, params, Engine(config, meshes.make(config.mesh), params)


@pytest.fixture
def engine():
    return make("learned")[2]


each_spec = pytest.mark.parametrize("name", SPECS)


def requests(**sampling) -> list[Request]:
    chance = np.random.default_rng(1)
    prompts = [chance.integers(MTNLG.vocab_size, size=length).tolist() for length in LENGTHS]
    pairs = enumerate(zip(prompts, NEW_TOKENS, strict=True))
    return [Request(prompt, **{"max_new_tokens": new, "temperature": 0.0, "seed": row, **sampling}) for row, (prompt, new) in pairs]


def likeliest(logits_V, request: Request, position: int) -> int:
    return int(logits_V.argmax())


def drawn(logits_V, request: Request, position: int) -> int:
    settings = Sampling(*(np.array([getattr(request, field)]) for field in Sampling._fields))
    return int(sample(logits_V[None, : MTNLG.vocab_size].astype(np.float32), settings, np.array([position]))[0])


def by_forwards(spec, params, request: Request, choose=likeliest) -> list[int]:
    """The new tokens when the whole text is read anew for each."""
    ids = list(request.prompt)
    for _ in range(request.max_new_tokens):
        places = np.arange(len(ids))[None]
        batch = {"tokens": np.array([ids]), "positions": places, "segment_ids": np.ones_like(places)}
        ids.append(choose(logits(spec, params, batch)[0, -1], request, len(ids)))
    return ids[len(request.prompt) :]


@each_spec
def test_greedy_is_the_argmax_of_whole_forwards(name):
    """With prompts of different lengths in one batch, each to its own number of new tokens."""
    spec, params, engine = make(name)
    expected = [by_forwards(spec, params, request) for request in requests()]
    assert engine.generate(requests()) == expected
    assert [len(ids) for ids in expected] == list(NEW_TOKENS)
    assert len(set(expected[0])) > 2, "a model that repeats one token would prove little"


@each_spec
def test_rows_are_independent(name):
    """Alone, or with another neighbour: the same tokens, drawn warm."""
    _, _, engine = make(name)
    together = engine.generate(requests(temperature=1.0))
    assert [engine.generate([request])[0] for request in requests(temperature=1.0)] == together
    first, second, _ = requests(temperature=1.0)
    other = second._replace(prompt=[0], seed=99, temperature=0.0)
    assert engine.generate([first, other, other])[0] == together[0]
    assert together != engine.generate(requests(temperature=1.0, seed=50))


def test_a_warm_token_is_drawn_with_its_seed_and_position(engine):
    _, params, _ = make("learned")
    warm = requests(temperature=1.5, top_k=9)
    assert engine.generate(warm) == [by_forwards(MTNLG, params, request, drawn) for request in warm]


def test_a_stop_id_ends_its_row_and_is_not_given_out(engine):
    whole = engine.generate(requests())
    stop_ids = [whole[0][3], whole[1][1]]

    def cut(ids):
        return ids[: next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))]

    got = engine.generate(requests(), stop_ids)
    assert got == [cut(ids) for ids in whole]
    assert got != whole


def test_stream_gives_every_row_a_token_a_step(engine):
    steps = list(engine.stream(requests()))
    assert len(steps) == max(NEW_TOKENS) and all(tokens_B.shape == (3,) and tokens_B.dtype == np.int32 for tokens_B in steps)
    assert [int(tokens_B[0]) for tokens_B in steps] == engine.generate(requests())[0]


def test_no_request_has_no_answer(engine):
    assert engine.generate([]) == [] and list(engine.stream([])) == []


def test_other_weights_of_the_same_model(engine):
    _, others, _ = make("learned", seed=2)
    before = engine.params
    engine.load(others)
    after = engine.generate(requests())
    engine.load(before)
    assert after == [by_forwards(MTNLG, others, request) for request in requests()] != engine.generate(requests())


def test_padding_of_the_vocabulary_is_never_drawn(engine):
    """However warm: the ids are those of the tokenizer."""
    hot = [Request([1], 12, temperature=1e38, seed=seed) for seed in range(3)]
    assert max(max(ids) for ids in engine.generate(hot)) < MTNLG.vocab_size < MTNLG.padded_vocab_size


BEYOND = "the prompt has ids beyond the vocabulary of 11 (prompt)"


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (Request([]), "the prompt has no tokens (prompt). Try: at least one token; the end-of-document token starts afresh"),
        (Request([3, 11]), BEYOND),
        (Request([-1, 3]), BEYOND),
        (
            Request([1] * 4, 11),
            "4 tokens of prompt and 11 new ones exceed the 14 learned positions (prompt). Try: at most 10 new tokens",
        ),
        (Request([1] * 14, 1), "14 tokens of prompt and 1 new ones exceed the 14 learned positions (prompt). Try: a shorter prompt"),
        (Request([1], 0), "max_new_tokens=0 is out of range (max_new_tokens). Try: 1 or more"),
        (Request([1], 2, temperature=-0.5), "temperature=-0.5 is out of range (temperature). Try: 0 (greedy) or more"),
        (Request([1], 2, temperature=float("nan")), "temperature=nan is out of range (temperature). Try: 0 (greedy) or more"),
        (Request([1], 2, temperature=float("inf")), "temperature=inf is out of range (temperature). Try: 0 (greedy) or more"),
        (Request([1], 2, top_k=-1), "top_k=-1 is out of range (top_k). Try: 0 (all) or more"),
        (Request([1], 2, top_k=2**31), "top_k=2147483648 is out of range (top_k). Try: 0 (all) or more"),
        (Request([1], 2, top_p=0.0), "top_p=0.0 is out of range (top_p). Try: more than 0, at most 1"),
        (Request([1], 2, top_p=1.5), "top_p=1.5 is out of range (top_p). Try: more than 0, at most 1"),
        (Request([1], 2, seed=-1), "seed=-1 is out of range (seed). Try: 0 to 4294967295"),
        (Request([1], 2, seed=2**32), "seed=4294967296 is out of range (seed). Try: 0 to 4294967295"),
    ],
)
def test_a_request_that_cannot_be_honoured_is_refused(engine, request_, line):
    """Beside a good one, before anything is computed."""
    with pytest.raises(ConfigError) as caught:
        engine.generate([Request([1], 2), request_])
    assert str(caught.value) == line
    assert caught.value.exit_code == 2


def test_without_learned_positions_a_text_may_grow_beyond_seq_len():
    make("alibi, sliding window")[2].check(Request([1] * 30, 30))


def decode_program(donate: bool):
    """(the cache, the compiled decoding step of an 8-layer model): two rows of 512 slots."""
    model = schema.Model(num_layers=8, d_model=16, num_heads=2, vocab_size=32, position="rope")
    config = schema.Config(model=model)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), count.abstract_params(model))
    engine = Engine(config, meshes.make(config.mesh), params)
    cache = caches.empty(model, 2, 512, jnp.float32)
    row_B = jnp.zeros(2, jnp.int32)
    sampling = Sampling(jnp.ones(2), row_B, jnp.ones(2), row_B.astype(jnp.uint32))
    step = engine._following if donate else jax.jit(engine._following.__wrapped__)
    return cache, step.lower(engine.params, row_B, row_B, cache, sampling).compile()


def whole_copies(cache, compiled) -> int:
    """How often the program copies the keys or values of all layers."""
    shape = ",".join(map(str, cache.keys_NBSGK.shape))
    return len(re.findall(rf"= \S*\[{shape}\]\S* copy(?:-start)?\(", compiled.as_text()))


def num_bytes(cache) -> int:
    return sum(leaf.nbytes for leaf in cache)


def test_decoding_updates_the_cache_in_place():
    """The output is the input's memory, nothing copies a whole cache, and all else takes less than the caches of two layers of eight."""
    cache, compiled = decode_program(donate=True)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes(cache)
    assert whole_copies(cache, compiled) == 0
    assert memory.temp_size_in_bytes < 2 * num_bytes(cache) / 8


def test_a_cache_that_is_not_given_away_is_copied():
    """Negative control."""
    cache, compiled = decode_program(donate=False)
    assert compiled.memory_analysis().alias_size_in_bytes == 0
    assert whole_copies(cache, compiled) == 2
