"""Bias and penalties, which tokens are allowed, how often each is drawn, and that a row's tokens are its own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtnlg.infer import request, sampling
from mtnlg.infer.sampling import History, Sampling, allowed

V = 12
sample, probabilities, penalised, logprobs = map(jax.jit, (sampling.sample, sampling.probabilities, sampling.penalised, sampling.logprobs))
PLAIN = request.Request((), temperature=1.0, top_p=1.0)  # changes nothing
DTYPES = {"top_k": jnp.int32, "seed": jnp.uint32}
OPTIONS = {
    "temperature": 0.5,
    "top_k": 4,
    "top_p": 0.7,
    "min_p": 0.2,
    "repetition_penalty": 1.7,
    "presence_penalty": 0.9,
    "frequency_penalty": -0.6,
}


def settings(num_rows, **values) -> Sampling:
    """Every value for all rows, or one for each."""
    filled = {name: values.get(name, getattr(PLAIN, name)) for name in Sampling._fields}
    return Sampling(
        **{name: jnp.broadcast_to(jnp.asarray(value, DTYPES.get(name, jnp.float32)), num_rows) for name, value in filled.items()}
    )


def no_history(num_rows, vocab_size=V) -> History:
    shape = (num_rows, vocab_size)
    return History(jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))


def random_history(num_rows, seed=0) -> History:
    """Half of the tokens in the prompt, a third written, up to three times, and each biased."""
    random, shape = np.random.default_rng(seed), (num_rows, V)
    counts = random.integers(1, 4, shape) * (random.random(shape) < 1 / 3)
    return History(random.random(shape) < 0.5, counts.astype(np.int32), random.standard_normal(shape).astype(np.float32))


def draw(logits_BV, row_settings, positions_B):
    """`sample` without a history."""
    return sample(logits_BV, row_settings, no_history(*np.shape(logits_BV)), positions_B)


def which(logits_BV, top_k_B, top_p_B, min_p_B=0.0):
    return jax.jit(allowed)(logits_BV, top_k_B, top_p_B, jnp.broadcast_to(min_p_B, len(top_k_B)))


def random_logits(num_rows, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal((num_rows, V)).astype(np.float32)


def penalised_slowly(logits, history: History, row, values):
    """The definitions of `request.Request`, token by token, in float64."""
    found = []
    for logit, in_prompt, count, bias in zip(logits, *(part[row] for part in history), strict=True):
        logit = np.float64(logit) + bias
        if in_prompt or count:
            logit = logit / values["repetition_penalty"] if logit > 0 else logit * values["repetition_penalty"]
        if count:
            logit -= values["presence_penalty"] + values["frequency_penalty"] * count
        found.append(logit)
    return np.array(found)


def allowed_slowly(logits, top_k, top_p):
    """The definition, token by token, in float64. Also the nucleus mass at each border, for what rounding may decide either way."""
    ranks = [sum(other > logit for other in logits) for logit in logits]
    within_k = [top_k == 0 or rank < top_k for rank in ranks]
    mass = np.where(within_k, np.exp(np.float64(logits) - max(logits)), 0.0)
    likelier = np.array([sum(m for m, other in zip(mass, logits, strict=True) if other > logit) for logit in logits]) / mass.sum()
    return np.array(within_k) & ((likelier < top_p) | (top_p >= 1)), likelier


# Quarters tie often, and are exact in float32.
some_logits = st.lists((st.integers(-6, 6) | st.integers(-160, 160)).map(lambda n: n / 4), min_size=V, max_size=V)


@given(logits=some_logits, top_k=st.integers(0, V + 3), top_p=st.integers(1, 64).map(lambda n: n / 64))
@example(logits=[0.0] * V, top_k=1, top_p=0.01)  # all tie: all are kept
@example(logits=[0.0, -20.0, *[-30.0] * (V - 2)], top_k=0, top_p=1.0)  # the likeliest fills float32's sum; top_p 1 allows the rest too
@example(logits=[2.0, 2.0, 1.0, 1.0, *[0.0] * (V - 4)], top_k=3, top_p=1.0)
@example(logits=[0.0] * 6 + [-40.0] * 6, top_k=0, top_p=0.5)
@example(logits=[n / 4 for n in range(V)], top_k=4, top_p=0.75)  # the nucleus is that of the top_k
def test_allowed_is_its_definition(logits, top_k, top_p):
    got = which(jnp.asarray([logits]), jnp.asarray([top_k]), jnp.asarray([top_p], jnp.float32))[0]
    expected, likelier = allowed_slowly(logits, top_k, top_p)
    clear = (np.abs(likelier - top_p) > 1e-5) | (top_p >= 1)
    np.testing.assert_array_equal(np.asarray(got)[clear], expected[clear])
    assert got[np.argmax(logits)]


@given(
    logits=some_logits,
    top_k=st.integers(0, V),
    top_p=st.integers(1, 64).map(lambda n: n / 64),
    min_p=st.integers(0, 64).map(lambda n: n / 64),
)
@example(logits=[0.0] * V, top_k=0, top_p=1.0, min_p=1.0)  # all tie with the likeliest
@example(logits=[1.0, *[0.0] * (V - 1)], top_k=0, top_p=1.0, min_p=1.0)
@example(logits=[-40.0, *[0.0] * (V - 1)], top_k=0, top_p=1.0, min_p=0.0)
def test_min_p_is_a_part_of_the_largest_probability(logits, top_k, top_p, min_p):
    limits = jnp.asarray([top_k]), jnp.asarray([top_p], jnp.float32)
    got, without = (which(jnp.asarray([logits]), *limits, least)[0] for least in (min_p, 0.0))
    parts = np.exp(np.float64(logits) - max(logits))
    clear = (np.abs(parts - min_p) > 1e-5) | (parts == 1)
    np.testing.assert_array_equal(np.asarray(got)[clear], (np.asarray(without) & (parts >= min_p))[clear])


@pytest.mark.parametrize("zeros", [[0.0, -0.0], [-0.0, 0.0]])
def test_both_zeros_tie(zeros):
    assert which(jnp.asarray([[*zeros, -1.0]]), jnp.asarray([1]), jnp.asarray([1.0]))[0].tolist() == [True, True, False]


@pytest.mark.parametrize("option", ["repetition_penalty", "presence_penalty", "frequency_penalty", "none", "all"])
def test_bias_and_penalties_are_their_definitions(option):
    """Against the slow definition; each changes what it is said to change: tokens of the prompt too, or only those written."""
    neutral = {name: getattr(PLAIN, name) for name in OPTIONS}
    values = neutral | {name: value for name, value in OPTIONS.items() if option in (name, "all")}
    logits_BV, history = random_logits(50), random_history(50)
    got = penalised(logits_BV, settings(50, **values), history)
    np.testing.assert_allclose(got, [penalised_slowly(row, history, n, values) for n, row in enumerate(logits_BV)], atol=1e-5)
    biased = logits_BV + history.bias_BV
    counted = {"none": 0, "presence_penalty": history.counts_BV > 0, "frequency_penalty": history.counts_BV > 0}
    changes = counted.get(option, history.in_prompt_BV | (history.counts_BV > 0))
    np.testing.assert_array_equal(np.asarray(got) != biased, np.broadcast_to(changes, biased.shape))


def test_rows_have_their_own_settings():
    logits_BV = random_logits(4)
    top_k_B, top_p_B = [0, 1, 5, 5], [1.0, 1.0, 0.9, 0.3]
    got_BV = which(logits_BV, jnp.asarray(top_k_B), jnp.asarray(top_p_B))
    expected_BV = [allowed_slowly(*row)[0] for row in zip(logits_BV, top_k_B, top_p_B, strict=True)]
    np.testing.assert_array_equal(got_BV, expected_BV)
    assert len({sum(row) for row in expected_BV}) > 2


def test_top_p_1_allows_everything_beside_a_row_with_less():
    """Also where the likeliest fills float32's sum."""
    logits_BV = jnp.asarray([[0.0, *[-20.0] * (V - 1)]] * 2)
    assert which(logits_BV, jnp.zeros(2, jnp.int32), jnp.asarray([1.0, 0.5])).sum(-1).tolist() == [V, 1]


def test_the_likeliest_is_the_first_of_equals():
    """Where one is not a number, some id of the vocabulary."""
    logits_BV = jnp.array([[0.0, 2.0, 2.0], [-jnp.inf] * 3, [3.0, 1.0, jnp.nan]])
    assert sampling.likeliest(logits_BV).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "limits", [{"temperature": 0.0}, {"temperature": 1e-6}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-6}, {"top_p": 1e-60}]
)
def test_greedy_and_its_limits_are_the_argmax(limits):
    logits_BV = random_logits(64)
    got_B = draw(logits_BV, settings(64, **limits, seed=np.arange(64)), jnp.arange(64))
    np.testing.assert_array_equal(got_B, logits_BV.argmax(-1))
    assert got_B.dtype == jnp.int32


def frequencies(logits, num_draws, **limits):
    """How often each token is drawn from the same logits, each time at another position."""
    tokens = draw(np.broadcast_to(logits, (num_draws, V)), settings(num_draws, **limits), jnp.arange(num_draws))
    return np.bincount(tokens, minlength=V)


@pytest.mark.parametrize(
    "limits", [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}, {"seed": 2**32 - 1}]
)
def test_draws_follow_the_softmax(limits):
    """Pearson's chi-square of 20 000 draws against the softmax of what is allowed, below its 0.9999 quantile for 11 degrees of freedom."""
    logits, num_draws = random_logits(1, scale=1.0)[0], 20_000
    warm = logits / limits.get("temperature", 1.0)
    keep, _ = allowed_slowly(warm, limits.get("top_k", 0), limits.get("top_p", 1.0))
    keep &= np.exp(warm - warm.max()) >= limits.get("min_p", 0.0)
    probs = np.where(keep, np.exp(warm), 0.0) / np.exp(warm)[keep].sum()
    counts = frequencies(logits, num_draws, **limits)
    assert counts[~keep].sum() == 0
    assert chi_square(counts, probs) < 38.0


def chi_square(counts, probs) -> float:
    expected = counts.sum() * probs[probs > 0]
    return float(np.sum((counts[probs > 0] - expected) ** 2 / expected))


def test_probabilities_are_those_of_the_draws():
    """With every option at once, in several blocks: Pearson's chi-square at most four deviations above its mean, and nothing else drawn."""
    num_draws, vocab_size = 40_000, 3 * sampling.BLOCK - 5
    random = np.random.default_rng(3)
    logits, counts = random.standard_normal(vocab_size), random.integers(0, 3, vocab_size)
    history = History(random.random(vocab_size) < 0.5, counts.astype(np.int32), random.standard_normal(vocab_size).astype(np.float32))
    values = OPTIONS | {"temperature": 1.5, "top_k": 60, "top_p": 0.9, "min_p": 0.03}
    rows = jax.tree.map(lambda part: np.broadcast_to(part, (num_draws, vocab_size)), (logits.astype(np.float32), history))
    probs = np.float64(probabilities(rows[0][:1], settings(1, **values), jax.tree.map(lambda part: part[:1], rows[1]))[0])
    drawn = np.bincount(sample(rows[0], settings(num_draws, **values), rows[1], jnp.arange(num_draws)), minlength=vocab_size)
    possible = int((probs > 0).sum())
    assert 10 < possible < 60 and drawn[probs == 0].sum() == 0 and abs(probs.sum() - 1) < 1e-6
    assert len({int(token) // sampling.BLOCK for token in np.flatnonzero(probs)}) == 3
    assert chi_square(drawn, probs) < possible + 4 * np.sqrt(2 * possible)


def test_probabilities_are_the_softmax_of_what_is_allowed():
    logits_BV, history = random_logits(20), random_history(20)
    got = probabilities(logits_BV, settings(20, **OPTIONS), history)
    for row, logits in enumerate(logits_BV):
        warm = penalised_slowly(logits, history, row, OPTIONS) / OPTIONS["temperature"]
        parts = np.exp(warm - warm.max()) * (np.exp(warm - warm.max()) >= OPTIONS["min_p"])
        parts *= allowed_slowly(warm, OPTIONS["top_k"], OPTIONS["top_p"])[0]
        np.testing.assert_allclose(got[row], parts / parts.sum(), atol=1e-6)


def test_a_greedy_row_is_certain_of_its_token():
    logits_BV, history, mixed = random_logits(6), random_history(6), settings(6, temperature=[0.0, 1.0] * 3, presence_penalty=3.0)
    tokens, probs = sample(logits_BV, mixed, history, jnp.arange(6)), probabilities(logits_BV, mixed, history)
    np.testing.assert_array_equal(probs[::2], np.eye(V)[tokens[::2]])
    assert np.max(probs[1::2]) < 1


def test_the_bound_on_draws_can_be_broken():
    """Negative control: draws at another temperature are far off."""
    logits = random_logits(1, scale=1.0)[0]
    probs = np.exp(logits) / np.exp(logits).sum()
    assert chi_square(frequencies(logits, 20_000, temperature=1.2), probs) > 100


def test_a_row_draws_the_same_alone_and_among_any_neighbours():
    logits_BV, seeds, positions = random_logits(6), np.array([3, 3, 4, 0, 9, 9]), np.array([0, 5, 5, 1, 7, 7])
    together = draw(logits_BV, settings(6, seed=seeds), positions)
    alone = [draw(logits_BV[row : row + 1], settings(1, seed=seeds[row]), positions[row : row + 1])[0] for row in range(6)]
    np.testing.assert_array_equal(together, alone)
    neighbours = np.concatenate([logits_BV[:1], random_logits(5, seed=1)])
    greedy_beside = settings(6, temperature=[1.0, 0, 0, 0, 0, 0], seed=3)
    assert draw(neighbours, greedy_beside, positions)[0] == together[0]


@pytest.mark.parametrize("own", [{}, {"temperature": 0.0}, *({name: value} for name, value in OPTIONS.items())])
@pytest.mark.parametrize("theirs", [*({name: value} for name, value in OPTIONS.items()), {"temperature": 0.0}, OPTIONS])
def test_what_neighbours_ask_for_changes_no_bit(own, theirs):
    """Probabilities and token of a row among eight that want the same as it does, and among seven that want something else."""
    logits_BV, history, positions = random_logits(8), random_history(8), jnp.arange(8)
    values = {name: np.array([own.get(name, getattr(PLAIN, name)), *[theirs.get(name, getattr(PLAIN, name))] * 7]) for name in OPTIONS}
    for function, more in ((probabilities, ()), (sample, (positions,))):
        alike, mixed = (np.asarray(function(logits_BV, settings(8, **which), history, *more))[0] for which in (own, values))
        np.testing.assert_array_equal(alike, mixed)


@pytest.mark.parametrize("changed", ["nothing", "seed", "position"])
def test_a_draw_hangs_on_seed_and_position(changed):
    logits_BV = np.zeros((200, V), np.float32)
    first = draw(logits_BV, settings(200, seed=7), jnp.arange(200))
    again = draw(logits_BV, settings(200, seed=8 if changed == "seed" else 7), jnp.arange(200) + (1000 if changed == "position" else 0))
    same = int(np.sum(np.asarray(first) == np.asarray(again)))
    assert same == 200 if changed == "nothing" else same < 40  # 200/12 by chance


@pytest.mark.parametrize("vocab_size", [5, 60])
def test_logprobs_are_of_the_bare_distribution(vocab_size):
    logits_BV = np.random.default_rng(0).standard_normal((3, vocab_size)).astype(np.float32)
    tokens, num_told = np.array([0, 4, 2]), min(vocab_size, request.MAX_LIKELIEST)
    chosen, ids, likeliest = logprobs(logits_BV, tokens)
    expected = np.float64(logits_BV) - np.log(np.exp(np.float64(logits_BV)).sum(-1, keepdims=True))
    np.testing.assert_allclose(chosen, expected[np.arange(3), tokens], atol=1e-5)
    np.testing.assert_array_equal(ids, np.argsort(-logits_BV)[:, :num_told])
    np.testing.assert_allclose(likeliest, -np.sort(-expected)[:, :num_told], atol=1e-5)
