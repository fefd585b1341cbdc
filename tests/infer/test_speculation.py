"""An engine with a draft writes what it would write without: the same tokens if greedy, else tokens of the same distribution."""

import functools
import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from numpy_gpt import logits
from test_engine import MTNLG, SPECS, make, requests

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.infer import chunks, speculative
from mtnlg.infer.engine import Engine
from mtnlg.infer.request import Request
from mtnlg.infer.speculation import Speculation
from mtnlg.model import cache as caches
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import specs

PENALTIES = {"presence_penalty": 2.0, "frequency_penalty": 0.5, "repetition_penalty": 1.5, "logit_bias": {3: 2.0}}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caches, "BLOCK", 4)
    monkeypatch.setattr(chunks, "SHORTEST", 1)


@functools.cache
def make_pair(name="learned", draft_seed=2, num_drafted=3, num_rows=3, mesh=()):
    """(an engine, one of the same weights with a draft). The draft of seed 1 is the model itself."""
    _, params, plain = make(name)
    _, draft_params, _ = make(name, draft_seed)
    config = replace(plain.config, mesh=schema.Mesh(**dict(mesh)))
    made = meshes.make(config.mesh)

    def placed(params):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
        return jax.tree.map(jax.device_put, params, specs.shardings(made, specs.storage_table(config), params))

    draft = Engine(config, made, placed(draft_params), num_rows=num_rows)
    return make(name, num_rows=num_rows)[2], Speculation(draft, num_drafted, config, made, placed(params), num_rows=num_rows)


@pytest.mark.parametrize("name", SPECS)
def test_greedy_tokens_are_those_without_a_draft(name):
    """In rows that take different numbers of tokens, to the end of the learned positions; with penalties, which see drafted tokens."""
    plain, drafting = make_pair(name)
    for settings in ({}, PENALTIES):
        assert drafting.generate(requests(**settings)) == plain.generate(requests(**settings))
    assert 0 < drafting.taken_tokens < drafting.drafted_tokens


@pytest.mark.parametrize("num_drafted", [1, 4])
def test_a_draft_that_is_the_model_is_taken_whole(num_drafted):
    """Greedy and warm, with penalties: what has been drafted, of texts that go on long enough."""
    _, drafting = make_pair("learned", 1, num_drafted)
    for temperature in (0.0, 1.0):
        before = drafting.taken_tokens, drafting.drafted_tokens
        drafting.generate([Request([3], 1 + 2 * (num_drafted + 1), temperature=temperature, **PENALTIES)])
        assert drafting.taken_tokens - before[0] == drafting.drafted_tokens - before[1] == 2 * num_drafted


def test_a_mesh_writes_the_same():
    plain, drafting = make_pair(num_rows=4, mesh=(("data", 2), ("tensor", 2)))
    assert drafting.generate(requests(**PENALTIES)) == plain.generate(requests(**PENALTIES))


def test_rows_are_independent():
    """Alone, or with neighbours that take more or fewer: the same tokens, drawn warm."""
    _, drafting = make_pair()
    warm = requests(temperature=1.0, **PENALTIES)
    together = drafting.generate(warm)
    assert [drafting.generate([request])[0] for request in warm] == together
    assert drafting.generate([warm[1], warm[0], warm[0]])[1:] == [together[0]] * 2
    assert together != drafting.generate(requests(temperature=1.0, seed=50, **PENALTIES))


def test_stops_lengths_and_prefixes_are_an_engines():
    plain, drafting = make_pair()
    _, again, _ = requests()
    whole = plain.generate([again])[0]
    for stop in whole:
        stopping = again._replace(stop_ids=frozenset([stop]))
        assert drafting.generate([stopping]) == plain.generate([stopping])
    for length in range(1, len(whole)):
        assert drafting.generate([again._replace(max_new_tokens=length)]) == [whole[:length]]
    assert drafting.reused_tokens > 0
    longer = again._replace(prompt=[*again.prompt, 1])  # its first block is copied from a row that is at work
    assert drafting.generate([again, longer]) == plain.generate([again, longer])


def test_what_was_under_way_can_be_dropped():
    plain, drafting = make_pair()
    for request in requests(temperature=1.0):
        drafting.submit(request)
    for _ in range(3):
        drafting.step()
    drafting.reset()
    assert not drafting.busy and drafting.generate(requests()) == plain.generate(requests())


def test_log_probabilities_are_the_models_own():
    plain, drafting = make_pair()
    asked = requests(num_likeliest=3, **PENALTIES)
    both = [sorted(engine.run(asked), key=lambda event: event.number) for engine in (plain, drafting)]
    assert len(both[0]) == sum(request.max_new_tokens for request in asked)
    for one, other in zip(*both, strict=True):
        assert (one.number, one.finish, one.token.id) == (other.number, other.finish, other.token.id)
        assert [id for id, _ in one.token.likeliest] == [id for id, _ in other.token.likeliest]
        found, expected = ([token.logprob, *(logprob for _, logprob in token.likeliest)] for token in (other.token, one.token))
        np.testing.assert_allclose(found, expected, atol=1e-5)


# Distributions

PROMPT, LENGTH, NUM_TEXTS = [3, 1], 3, 3000
WARM = {"max_new_tokens": LENGTH, "temperature": 1.5, "top_k": 3, "top_p": 1.0, "presence_penalty": 1.0}


def exact():
    """{the tokens of a text: its probability} by whole forwards of the oracle."""
    _, params, _ = make("learned")
    found = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for ids, prob in found.items():
            places = np.arange(len(PROMPT) + len(ids))[None]
            batch = {"tokens": np.array([[*PROMPT, *ids]]), "positions": places, "segment_ids": np.ones_like(places)}
            wanted = logits(MTNLG, params, batch)[0, -1, : MTNLG.vocab_size]
            wanted[list(set(ids))] -= WARM["presence_penalty"]
            best = np.argsort(-wanted)[: WARM["top_k"]]
            parts = np.exp((wanted[best] - wanted[best[0]]) / WARM["temperature"])
            longer |= {(*ids, int(id)): prob * part / parts.sum() for id, part in zip(best, parts, strict=True)}
        found = longer
    return found


def chi_square(drafting) -> float:
    """Pearson's, of NUM_TEXTS texts against `exact`; endless where one was written that cannot be."""
    expected = exact()
    written = [tuple(ids) for ids in drafting.generate([Request(PROMPT, seed=seed, **WARM) for seed in range(NUM_TEXTS)])]
    if set(written) - set(expected):
        return np.inf
    counts = {ids: len(list(group)) for ids, group in itertools.groupby(sorted(written))}
    return sum((counts.get(ids, 0) - NUM_TEXTS * prob) ** 2 / (NUM_TEXTS * prob) for ids, prob in expected.items())


@pytest.mark.slow
def test_texts_are_distributed_as_the_models():
    """27 of them, below the 0.9999 quantile for 26 degrees of freedom."""
    _, drafting = make_pair(num_drafted=2, num_rows=50)
    assert chi_square(drafting) < 62.0
    assert 0.05 < drafting.taken_tokens / drafting.drafted_tokens < 0.95


@pytest.mark.slow
def test_the_bound_can_be_broken(monkeypatch):
    """Negative control: a draft that is always taken writes texts of its own."""

    def always(drafted_BK, drafted_BKV, wanted_BPV, seed_B, positions_B):
        taken_B, next_B = verify(drafted_BK, drafted_BKV, wanted_BPV, seed_B, positions_B)
        return taken_B * 0 + drafted_BK.shape[1], next_B

    verify = speculative.verify
    monkeypatch.setattr(speculative, "verify", always)
    _, drafting = make_pair.__wrapped__(num_drafted=2, num_rows=50)
    assert chi_square(drafting) > 500


# Refusals


def test_a_text_does_not_slide():
    _, drafting = make_pair()
    with pytest.raises(ConfigError, match="exceed the context"):
        drafting.submit(Request([1], 14, slide=True))


@pytest.mark.parametrize(
    ("settings", "what"), [({"num_rows": 2}, "num_rows=2"), ({"num_ids": 7}, "num_ids=7"), ({"context": 9}, "context=9")]
)
def test_a_draft_that_does_not_fit_is_refused(settings, what):
    _, params, plain = make("learned")
    draft = Engine(plain.config, plain.mesh, params, **{"num_rows": 3} | settings)
    with pytest.raises(ConfigError, match=what):
        Speculation(draft, 3, plain.config, plain.mesh, params, num_rows=3)


def test_nothing_drafted_is_refused():
    _, params, plain = make("learned")
    with pytest.raises(ConfigError, match="0 tokens drafted"):
        Speculation(plain, 0, plain.config, plain.mesh, params, num_rows=3)
