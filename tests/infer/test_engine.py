"""Generation through the cache equals repeated whole forwards of the NumPy oracle; rows are independent; the cache stays in place."""

import functools
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from harness import config_of
from numpy_gpt import init, logits
from test_numpy_gpt import LLAMA, MTNLG

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.infer import chunks
from mtnlg.infer import engine as engines
from mtnlg.infer.engine import Engine
from mtnlg.infer.programs import sampling_of
from mtnlg.infer.request import Request
from mtnlg.infer.sampling import History, sample
from mtnlg.model import cache as caches
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import specs

SEQ_LEN = 14
SPECS = {
    "learned": MTNLG,
    "rope, grouped heads, swiglu, rmsnorm": replace(LLAMA, num_kv_heads=2),
    "alibi, sliding window": replace(MTNLG, position="alibi", sliding_window=3, tied=False),
}
draw = jax.jit(sample)
LENGTHS, NEW_TOKENS = (1, 5, 12), (12, 7, 2)  # the last row ends at the end of the learned positions, the others go on


@functools.cache
def make(name, seed=1, num_rows=3, **settings):
    """(spec, the oracle's parameters, an engine on them). The attention's blocks and the chunks of prompts are of 4 tokens."""
    spec = SPECS[name]
    params = init(spec, SEQ_LEN, np.random.default_rng(seed))
    config = config_of(spec, SEQ_LEN, biases=True, compute_dtype="float32", param_dtype="float32")
    return spec, params, Engine(config, meshes.make(config.mesh), params, num_rows=num_rows, **settings)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caches, "BLOCK", 4)
    monkeypatch.setattr(chunks, "SHORTEST", 4)


@pytest.fixture
def engine():
    return make("learned")[2]


each_spec = pytest.mark.parametrize("name", SPECS)


def requests(**sampling) -> list[Request]:
    chance = np.random.default_rng(1)
    prompts = [chance.integers(MTNLG.vocab_size, size=length).tolist() for length in LENGTHS]
    pairs = enumerate(zip(prompts, NEW_TOKENS, strict=True))
    return [Request(prompt, **{"max_new_tokens": new, "temperature": 0.0, "seed": row, **sampling}) for row, (prompt, new) in pairs]


def oracle_logits(spec, params, ids):
    """[V] after the last of the ids, by a whole forward."""
    places = np.arange(len(ids))[None]
    batch = {"tokens": np.array([ids]), "positions": places, "segment_ids": np.ones_like(places)}
    return logits(spec, params, batch)[0, -1, : MTNLG.vocab_size].astype(np.float32)


def by_forwards(spec, params, request: Request, context=SEQ_LEN) -> list[int]:
    """The new tokens when the whole text is read anew for each, with penalties and bias as they are defined and `sample`'s draw."""
    ids, written, dropped = list(request.prompt), [], 0
    for _ in range(request.max_new_tokens):
        if len(ids) > context:
            dropped += len(ids) - context // 2
            ids = ids[-(context // 2) :]
        counts = np.bincount(written, minlength=MTNLG.vocab_size)
        bias = np.array([request.logit_bias.get(id, 0.0) for id in range(MTNLG.vocab_size)], np.float32)
        history = History(*(row[None] for row in (np.isin(np.arange(MTNLG.vocab_size), request.prompt), counts.astype(np.int32), bias)))
        drawn = draw(oracle_logits(spec, params, ids)[None], sampling_of([request._asdict()]), history, np.array([dropped + len(ids)]))
        written.append(int(drawn[0]))
        ids.append(written[-1])
    return written


@each_spec
def test_greedy_is_the_argmax_of_whole_forwards(name):
    """With prompts of different lengths in one batch, each to its own number of new tokens."""
    spec, params, engine = make(name)
    expected = [by_forwards(spec, params, request) for request in requests()]
    assert engine.generate(requests()) == expected
    assert [len(ids) for ids in expected] == list(NEW_TOKENS)
    assert len(set(expected[0])) > 2, "a model that repeats one token would prove little"


@pytest.mark.parametrize("settings", [{"laid": spmd.Laid(apart=True)}, {"num_rows": 1}, {"num_rows": 2}])
def test_however_the_weights_lie_and_however_few_rows_there_are(settings, monkeypatch):
    """And in chunks of all lengths."""
    monkeypatch.setattr(chunks, "SHORTEST", 1)
    spec, params, engine = make("rope, grouped heads, swiglu, rmsnorm", **settings)
    assert engine.generate(requests()) == [by_forwards(spec, params, request) for request in requests()]


OPTIONS = {
    "top_k": {"temperature": 1.5, "top_k": 9},
    "min_p": {"temperature": 1.5, "min_p": 0.3},
    "repetition": {"repetition_penalty": 1.8},
    "presence": {"presence_penalty": 2.5},
    "frequency": {"frequency_penalty": 1.5},
    "bias": {"logit_bias": {3: 40.0, 4: -40.0}},
    "all": {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": {1: 2.0}},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_its_definition(engine, option):
    """On logits of whole forwards, with the counts of what was written."""
    _, params, _ = make("learned")
    with_it = requests(**OPTIONS[option])
    assert engine.generate(with_it) == [by_forwards(MTNLG, params, request) for request in with_it]
    assert engine.generate(with_it) != engine.generate(requests(temperature=with_it[0].temperature)), "the option must matter"


def test_log_probabilities_are_the_models_own(engine):
    """Before temperature and penalties, for one request beside others that do not ask."""
    _, params, _ = make("learned")
    asked, *others = requests(temperature=1.5, presence_penalty=1.0)
    events = list(engine.run([asked._replace(num_likeliest=3), *others]))
    told = [event.token for event in events if event.number == 0]
    ids = list(asked.prompt)
    for token in told:
        row = oracle_logits(MTNLG, params, ids).astype(np.float64)
        expected = row - np.log(np.sum(np.exp(row - row.max()))) - row.max()
        assert abs(token.logprob - expected[token.id]) < 1e-4
        likeliest = np.argsort(-expected)[:3]
        assert [id for id, _ in token.likeliest] == likeliest.tolist()
        np.testing.assert_allclose([logprob for _, logprob in token.likeliest], expected[likeliest], atol=1e-4)
        ids.append(token.id)
    assert len(told) == asked.max_new_tokens
    assert all(event.token.logprob is None and not event.token.likeliest for event in events if event.number != 0)


def many(num_requests: int, seed: int = 5) -> list[Request]:
    """Requests with all kinds of settings; half of the prompts begin alike, so that their first blocks are found read."""
    chance = np.random.default_rng(seed)
    common = chance.integers(MTNLG.vocab_size, size=9).tolist()
    made = []
    for number in range(num_requests):
        prompt = chance.integers(MTNLG.vocab_size, size=chance.integers(1, 6)).tolist()
        settings = list(OPTIONS.values())[number % len(OPTIONS)] | {"seed": number}
        prompt = common[: chance.integers(1, 10)] + prompt[:2] if number % 2 else prompt
        made.append(
            Request(prompt, int(chance.integers(1, SEQ_LEN - len(prompt) + 1)), num_likeliest=2 if number % 3 == 0 else None, **settings)
        )
    return made


def alone(engine, request) -> list[tuple]:
    """Its events, with nothing before it and nothing beside it."""
    engine.forget()
    return [event[1:] for event in engine.run([request])]


@each_spec
def test_a_hundred_requests_at_once_give_each_what_it_gets_alone(name):
    """The same tokens and bit for bit the same log-probabilities: queued, in four rows, coming and going, some of them cancelled."""
    _, _, engine = make(name, num_rows=4)
    asked, chance = many(100), np.random.default_rng(2)
    numbers, got, waiting = {}, {}, list(enumerate(asked))
    while waiting or engine.busy:
        for _ in range(int(chance.integers(0, 4))):
            if waiting:
                place, request = waiting.pop(0)
                number = engine.submit(request)
                numbers[number], got[place] = place, []
        if chance.random() < 0.1 and numbers:
            number = int(chance.choice(list(numbers)))
            engine.cancel(number)
        for event in engine.step():
            got[numbers[event.number]].append(event[1:])
    assert engine.reused_tokens > 0
    whole = [place for place, events in got.items() if events and events[-1][1] is not None]
    assert len(whole) > 70
    for place, request in enumerate(asked):
        events = alone(engine, request)
        assert got[place] == events[: len(got[place])]
        assert place not in whole or len(got[place]) == len(events)


def test_a_prompt_that_was_read_is_not_read_again(engine):
    """In its row, or copied from the row of a text that is still being written; the log-probabilities are the same to the bit."""
    prompt = np.random.default_rng(3).integers(MTNLG.vocab_size, size=11).tolist()
    request = Request(prompt, 3, num_likeliest=0)
    first = alone(engine, request)
    before = engine.reused_tokens
    assert [event[1:] for event in engine.run([request])] == first and engine.reused_tokens - before == 8
    engine.forget()
    before = engine.reused_tokens
    events = list(engine.run([request] * 3))
    assert engine.reused_tokens - before == 16
    assert all([event[1:] for event in events if event.number == number] == first for number in range(3))


def test_what_is_copied_matters(engine, monkeypatch):
    """Negative control: a copy of nothing gives other log-probabilities."""
    request = Request(np.random.default_rng(3).integers(MTNLG.vocab_size, size=11).tolist(), 3, num_likeliest=0)
    first = alone(engine, request)
    _, _, engine = make("learned", context=SEQ_LEN)  # whose rows have held nothing yet
    monkeypatch.setattr(engine.programs, "copy_prefix", lambda cache, *_: cache)
    events = list(engine.run([Request([1, 2], 3), request, request]))
    assert [event[1:] for event in events if event.number == 2] != first


def test_a_cancelled_request_is_gone_within_a_step(engine):
    long, short, queued = Request([1], 12), Request([2], 3), Request([3], 2)
    numbers = [engine.submit(request) for request in (long, long, short, queued)]
    told = [event.number for _ in range(3) for event in engine.step()]
    assert {*told} <= {*numbers[:3]} and numbers[0] in told
    engine.cancel(numbers[0])
    engine.cancel(numbers[0])
    rest = [event for _ in range(20) for event in engine.step()]
    assert numbers[0] not in {event.number for event in rest}
    assert [event[1:] for event in rest if event.number == numbers[3]] == alone(engine, queued)
    assert not engine.busy and engine.num_running == engine.num_queued == 0


def test_a_stop_id_ends_its_row(engine):
    whole = engine.generate(requests())
    stop_ids = frozenset([whole[0][3], whole[1][1]])

    def cut(ids):
        return ids[: next((place for place, token in enumerate(ids) if token in stop_ids), len(ids))]

    got = engine.generate(requests(stop_ids=stop_ids))
    assert got == [cut(ids) for ids in whole]
    assert got != whole
    events = [event for event in engine.run(requests(stop_ids=stop_ids)) if event.number == 0]
    assert events[-1].token.id in stop_ids and [event.finish for event in events] == [None] * (len(events) - 1) + ["stop"]


def test_the_last_token_says_that_there_is_no_more(engine):
    events = list(engine.run(requests()))
    ends = {event.number: event.finish for event in events}
    assert ends == dict.fromkeys(range(3), "length")
    assert [sum(event.finish is not None for event in events if event.number == number) for number in range(3)] == [1, 1, 1]


@each_spec
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.2, "presence_penalty": 1.0, "frequency_penalty": 0.7}])
def test_past_the_context_a_text_goes_on_from_its_last_half(name, sampling):
    """The bias and penalties stay those of the whole text; rows beside it that do not slide are as alone."""
    spec, params, engine = make(name, context=SEQ_LEN)
    sliding = Request([3, 1, 4, 1, 5], 40, slide=True, seed=3, **sampling)
    beside = requests(**sampling)[0]
    events = list(engine.run([sliding, beside]))
    assert [event.token.id for event in events if event.number == 0] == by_forwards(spec, params, sliding)
    assert [event.token.id for event in events if event.number == 1] == by_forwards(spec, params, beside)
    slides = [event.slides for event in events if event.number == 0]
    assert slides == sorted(slides) and slides[SEQ_LEN - 5] == 0 and slides[-1] == 4


def test_rows_grow_when_a_longer_text_comes(monkeypatch):
    monkeypatch.setattr(engines, "FIRST_SLOTS", 8)
    spec, params, engine = make("alibi, sliding window", context=64)
    short, long = Request([1, 2], 4), Request([3, 4, 5], 50)
    assert engine.generate([short]) == [by_forwards(spec, params, short, 64)]
    assert engine._cache.num_slots == 8
    assert engine.generate([short, long]) == [by_forwards(spec, params, request, 64) for request in (short, long)]
    assert engine._cache.num_slots == 64


@pytest.mark.parametrize("mesh", [{"data": 2, "tensor": 2}, {"replica": 2, "data": 2}])
def test_meshes_write_the_same(mesh, monkeypatch):
    """With rows in every group of devices, prefixes copied among those of one, a text that slides, and chunks of one token."""
    monkeypatch.setattr(chunks, "SHORTEST", 1)
    _, params, engine = make("learned", num_rows=4)
    config = replace(engine.config, mesh=schema.Mesh(**mesh))
    made = meshes.make(config.mesh)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    placed = jax.tree.map(jax.device_put, params, specs.shardings(made, specs.storage_table(config), params))
    spread = Engine(config, made, placed, num_rows=4)
    asked = [*requests(presence_penalty=1.0), *requests(temperature=1.5), Request([2, 7], 20, slide=True)]
    assert spread.generate(asked * 2) == engine.generate(asked * 2)
    assert spread.reused_tokens > 0


@pytest.mark.parametrize("tensor", [2, 4])
@pytest.mark.parametrize("int8", [False, True])
def test_layers_apart_on_tensor_shards(tensor, int8):
    """Transposed kernels are cut where the others are; with four shards of two key/value heads, each reads its own."""
    spec = replace(LLAMA, num_kv_heads=2, d_ff=20)
    params = init(spec, SEQ_LEN, np.random.default_rng(1))
    config = config_of(spec, SEQ_LEN, biases=True, compute_dtype="float32", param_dtype="float32")
    one = Engine(config, meshes.make(config.mesh), params, num_rows=3, laid=spmd.Laid(int8=int8))
    config = replace(config, mesh=schema.Mesh(tensor=tensor))
    made = meshes.make(config.mesh)
    placed = jax.tree.map(jax.device_put, params, specs.shardings(made, specs.storage_table(config), params))
    spread = Engine(config, made, placed, num_rows=3, laid=spmd.Laid(apart=True, int8=int8))
    assert spread.generate(requests()) == one.generate(requests())


@pytest.mark.parametrize(("num_waiting", "steps_a_token"), [(0, 1), (1, 1), (2, 2)])
def test_a_round_has_a_chunk_for_every_prompt_that_waits(engine, num_waiting, steps_a_token):
    """So whoever writes has to wait for no more, however long the prompts are: these have three chunks each."""
    writer = engine.submit(Request([1, 2], 12))
    while not engine.step():
        pass
    for first in range(num_waiting):
        engine.submit(Request([first, *range(1, 10)], 1))
    told = [sum(event.number == writer for event in engine.step()) for _ in range(6)]
    engine.reset()
    late = told[1:]  # a step is told by the next
    assert sum(late[:4]) == 4 // steps_a_token, told


def test_prompts_that_come_together_are_read_before_any_goes_on(engine):
    for request in requests():
        engine.submit(request._replace(prompt=request.prompt[:4]))
    told = [event.number for _ in range(3) for event in engine.step()]
    engine.reset()
    assert len(set(told)) == len(told) == 3


def test_a_round_is_no_longer_than_its_bound(engine, monkeypatch):
    monkeypatch.setattr(engines, "ROUND_CHUNKS", 2)
    first, second, third = [engine.submit(request._replace(prompt=request.prompt[:4])) for request in requests()]
    told = [event.number for _ in range(3) for event in engine.step()]
    engine.reset()
    assert told == [first, second, first, second, third]


def test_prompts_that_leave_end_the_round(engine):
    """Who is left does not wait for what was to be read."""
    first, *others = [engine.submit(request) for request in requests()]
    told = engine.step()
    for number in others:
        engine.cancel(number)
    told += [*engine.step(), *engine.step()]
    engine.reset()
    assert [event.number for event in told] == [first] * 2


def test_no_request_has_no_answer(engine):
    assert engine.generate([]) == [] and list(engine.run([])) == []


def test_a_run_that_is_closed_leaves_nothing_behind(engine):
    run = engine.run(requests())
    next(run)
    run.close()
    assert engine.num_running == engine.num_queued == 0


def test_runs_that_take_turns_lose_nothing(engine):
    """One that is begun and ended while another is under way."""
    first, second, _ = requests()
    expected = engine.generate([first])
    run = engine.run([first])
    got = [next(run)]
    assert engine.generate([second]) == [by_forwards(MTNLG, make("learned")[1], second)]
    assert [[event.token.id for event in (*got, *run)]] == expected


def test_other_weights_of_the_same_model(engine):
    """And what was read with the old ones is not taken for theirs."""
    _, params, _ = make("learned")
    _, others, _ = make("learned", seed=2)
    prompts = [Request(np.random.default_rng(3).integers(MTNLG.vocab_size, size=9).tolist(), 4, temperature=0.0)]
    engine.generate(prompts)
    engine.load(others)
    after = engine.generate(prompts)
    engine.load(params)
    assert after == [by_forwards(MTNLG, others, request) for request in prompts] != engine.generate(prompts)


def test_padding_of_the_vocabulary_is_never_drawn(engine):
    """However warm: the ids are those of the tokenizer."""
    hot = [Request([1], 12, temperature=1e38, seed=seed) for seed in range(3)]
    assert max(max(ids) for ids in engine.generate(hot)) < MTNLG.vocab_size < MTNLG.padded_vocab_size


def test_weights_and_cache_in_eight_bits_are_near():
    """Near in log-probabilities, and not the same: else eight bits were not used."""
    _, _, exact = make("rope, grouped heads, swiglu, rmsnorm")
    prompt = [3, 1, 4, 1, 5, 9]
    expected = alone(exact, Request(prompt, 1, num_likeliest=0, temperature=0.0))[0][0]
    for settings in ({"laid": spmd.Laid(int8=True)}, {"laid": spmd.Laid(apart=True, int8=True)}, {"int8_cache": True}):
        _, _, engine = make("rope, grouped heads, swiglu, rmsnorm", **settings)
        told = alone(engine, Request(prompt, 1, num_likeliest=0, temperature=0.0, logit_bias={expected.id: 100.0}))[0][0]
        assert 0 < abs(told.logprob - expected.logprob) < 0.1
    _, _, apart = make("rope, grouped heads, swiglu, rmsnorm", laid=spmd.Laid(apart=True, int8=True))
    _, _, stacked = make("rope, grouped heads, swiglu, rmsnorm", laid=spmd.Laid(int8=True))
    assert apart.generate(requests()) == stacked.generate(requests())


EXCEED = "exceed the context of 14 (prompt)"
BEYOND = "the prompt has ids beyond the vocabulary of 11 (prompt)"


@pytest.mark.parametrize(
    ("request_", "line"),
    [
        (Request([]), "the prompt has no tokens (prompt). Try: at least one token; the end-of-document token starts afresh"),
        (Request([3, 11]), BEYOND),
        (Request([-1, 3]), BEYOND),
        (Request([1], logit_bias={11: 1.0}), "the logit_bias has ids beyond the vocabulary of 11 (logit_bias)"),
        (Request([1] * 4, 11), f"4 tokens of prompt and 11 new ones {EXCEED}. Try: max_new_tokens=10 or slide=True"),
        (Request([1] * 14, 1), f"14 tokens of prompt and 1 new ones {EXCEED}. Try: truncate=left"),
        (Request([1] * 14, 1, slide=True), "14 tokens of prompt leave no room in the context of 14 (prompt). Try: truncate=left"),
        (Request([1], 0), "max_new_tokens=0 is out of range (max_new_tokens). Try: 1 or more"),
        (Request([1], 2, temperature=-0.5), "temperature=-0.5 is out of range (temperature). Try: 0 (greedy) or more"),
        (Request([1], 2, temperature=float("nan")), "temperature=nan is out of range (temperature). Try: 0 (greedy) or more"),
        (Request([1], 2, temperature=float("inf")), "temperature=inf is out of range (temperature). Try: 0 (greedy) or more"),
        (Request([1], 2, top_k=-1), "top_k=-1 is out of range (top_k). Try: 0 (all) or more"),
        (Request([1], 2, top_k=2**31), "top_k=2147483648 is out of range (top_k). Try: 0 (all) or more"),
        (Request([1], 2, top_p=0.0), "top_p=0.0 is out of range (top_p). Try: more than 0, at most 1"),
        (Request([1], 2, top_p=1.5), "top_p=1.5 is out of range (top_p). Try: more than 0, at most 1"),
        (Request([1], 2, min_p=1.5), "min_p=1.5 is out of range (min_p). Try: 0 (all) to 1"),
        (
            Request([1], 2, repetition_penalty=0),
            "repetition_penalty=0 is out of range (repetition_penalty). Try: 0.001 to 1000; 1 changes nothing",
        ),
        (Request([1], 2, presence_penalty=float("nan")), "presence_penalty=nan is out of range (presence_penalty). Try: -1000 to 1000"),
        (Request([1], 2, logit_bias={1: float("nan")}), "logit_bias={1: nan} is out of range (logit_bias). Try: -1000 to 1000 for each id"),
        (Request([1], 2, num_likeliest=21), "num_likeliest=21 is out of range (num_likeliest). Try: 0 to 20, or none"),
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
    assert not engine.busy


def test_learned_positions_bound_the_context():
    with pytest.raises(
        ConfigError, match=re.escape("a context of 15 tokens, and the model has 14 learned positions (context). Try: 14 or less")
    ):
        make("learned", context=SEQ_LEN + 1)
