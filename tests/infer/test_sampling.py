"""Which tokens are allowed, how often each is drawn, and that a draw is its row's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtnlg.infer.sampling import Sampling, allowed, sample

V = 12
draw = jax.jit(sample)
which = jax.jit(allowed)


def settings(num_rows, temperature=1.0, top_k=0, top_p=1.0, seed=0) -> Sampling:
    """Every value for all rows, or one for each."""
    values = ((temperature, jnp.float32), (top_k, jnp.int32), (top_p, jnp.float32), (seed, jnp.uint32))
    return Sampling(*(jnp.broadcast_to(jnp.asarray(value, dtype), num_rows) for value, dtype in values))


def random_logits(num_rows, seed=0, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal((num_rows, V)).astype(np.float32)


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


def test_rows_have_their_own_settings():
    logits_BV = random_logits(4)
    top_k_B, top_p_B = [0, 1, 5, 5], [1.0, 1.0, 0.9, 0.3]
    got_BV = which(logits_BV, jnp.asarray(top_k_B), jnp.asarray(top_p_B))
    expected_BV = [allowed_slowly(*row)[0] for row in zip(logits_BV, top_k_B, top_p_B, strict=True)]
    np.testing.assert_array_equal(got_BV, expected_BV)
    assert len({sum(row) for row in expected_BV}) > 2


@pytest.mark.parametrize("limits", [{"temperature": 0.0}, {"temperature": 1e-6}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-6}])
def test_greedy_and_its_limits_are_the_argmax(limits):
    logits_BV = random_logits(64)
    got_B = draw(logits_BV, settings(64, **limits, seed=np.arange(64)), jnp.arange(64))
    np.testing.assert_array_equal(got_B, logits_BV.argmax(-1))
    assert got_B.dtype == jnp.int32


def frequencies(logits, num_draws, **limits):
    """How often each token is drawn from the same logits, each time at another position."""
    tokens = draw(np.broadcast_to(logits, (num_draws, V)), settings(num_draws, **limits), jnp.arange(num_draws))
    return np.bincount(tokens, minlength=V)


@pytest.mark.parametrize("limits", [{}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 4}, {"top_p": 0.7}, {"seed": 2**32 - 1}])
def test_draws_follow_the_softmax(limits):
    """Pearson's chi-square of 20 000 draws against the softmax of what is allowed, below its 0.9999 quantile for 11 degrees of freedom."""
    logits, num_draws = random_logits(1, scale=1.0)[0], 20_000
    warm = logits / limits.get("temperature", 1.0)
    keep, _ = allowed_slowly(warm, limits.get("top_k", 0), limits.get("top_p", 1.0))
    probs = np.where(keep, np.exp(warm), 0.0) / np.exp(warm)[keep].sum()
    counts = frequencies(logits, num_draws, **limits)
    assert counts[~keep].sum() == 0
    assert chi_square(counts, probs) < 38.0


def chi_square(counts, probs) -> float:
    expected = counts.sum() * probs[probs > 0]
    return float(np.sum((counts[probs > 0] - expected) ** 2 / expected))


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


@pytest.mark.parametrize("changed", ["nothing", "seed", "position"])
def test_a_draw_hangs_on_seed_and_position(changed):
    logits_BV = np.zeros((200, V), np.float32)
    first = draw(logits_BV, settings(200, seed=7), jnp.arange(200))
    again = draw(logits_BV, settings(200, seed=8 if changed == "seed" else 7), jnp.arange(200) + (1000 if changed == "position" else 0))
    same = int(np.sum(np.asarray(first) == np.asarray(again)))
    assert same == 200 if changed == "nothing" else same < 40  # 200/12 by chance
