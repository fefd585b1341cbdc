"""Speculative decoding writes what the target alone would have written: the same tokens if greedy, else the same distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtnlg.core import prng
from mtnlg.infer.sampling import draw, row_keys
from mtnlg.infer.speculative import verify

V, NUM_ROWS = 5, 20_000


def random_chain(seed, zeros=0.0):
    """[V, V] float32: the distribution of the next token after each, some of it zero."""
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.ones(V), V) * (random.random((V, V)) >= zeros)
    probs[np.arange(V), random.integers(V, size=V)] += 0.05
    return np.float32(probs / probs.sum(-1, keepdims=True))


PAIRS = {
    "both full": (random_chain(1), random_chain(2)),
    "the draft lacks some": (random_chain(3), random_chain(4, zeros=0.5)),
    "the target lacks some": (random_chain(5, zeros=0.5), random_chain(6)),
    "each lacks others": (random_chain(7, zeros=0.5), random_chain(8, zeros=0.5)),
    "the same": (random_chain(9), random_chain(9)),
}
each_pair = pytest.mark.parametrize(("target", "draft"), PAIRS.values(), ids=PAIRS)


def always(draft_tokens_BK, draft_probs_BKV, target_probs_BPV, seed_B, positions_B):
    """What must not be: everything that was drafted is taken."""
    keys = row_keys(seed_B, prng.CORRECTION, positions_B + draft_tokens_BK.shape[1])
    return jnp.full(len(seed_B), draft_tokens_BK.shape[1]), draw(jnp.log(target_probs_BPV[:, -1]), keys)


@functools.partial(jax.jit, static_argnums=(4, 5))
def one_round(target, draft, last_B, positions_B, num_drafted, judge):
    """(tokens [B, K + 1], of which `taken` + 1 count, taken [B]): drafting and judging, after the token `last_B` of each row."""
    seed_B, tokens = jnp.arange(len(last_B), dtype=jnp.uint32), []
    for n in range(num_drafted):
        before_B = tokens[-1] if tokens else last_B
        tokens.append(draw(jnp.log(draft[before_B]), row_keys(seed_B, prng.DRAFT, positions_B + n)))
    before_BP = jnp.stack([last_B, *tokens], axis=1)
    taken_B, next_B = judge(before_BP[:, 1:], draft[before_BP[:, :-1]], target[before_BP], seed_B, positions_B)
    written = jnp.concatenate([before_BP[:, 1:], next_B[:, None]], axis=1)
    return written.at[jnp.arange(len(last_B)), taken_B].set(next_B), taken_B


def first_two(target, draft, num_drafted, judge=verify):
    """The first two tokens of each row [B, 2], from one or two rounds; all rows begin after token 0. And what the first round took."""
    start_B = jnp.zeros(NUM_ROWS, jnp.int32)
    written, taken_B = map(np.asarray, one_round(target, draft, start_B, start_B, num_drafted, judge))
    last_B = written[np.arange(NUM_ROWS), taken_B]
    more, _ = one_round(target, draft, jnp.asarray(last_B), jnp.asarray(taken_B + 1), num_drafted, judge)
    return np.stack([written[:, 0], np.where(taken_B > 0, written[:, 1], np.asarray(more)[:, 0])], axis=1), taken_B


def chi_square(tokens, target) -> float:
    """Pearson's, of pairs of tokens against the target's; endless where a pair was written that cannot be."""
    counts = np.bincount(tokens[:, 0] * V + tokens[:, 1], minlength=V * V)
    expected = NUM_ROWS * (np.float64(target[0])[:, None] * target).reshape(-1)
    if counts[expected == 0].any():
        return np.inf
    return float(np.sum((counts - expected)[expected > 0] ** 2 / expected[expected > 0]))


@each_pair
@pytest.mark.parametrize("num_drafted", [1, 3])
def test_tokens_are_distributed_as_the_targets(target, draft, num_drafted):
    """Two tokens together, below the 0.9999 quantile for 24 degrees of freedom."""
    tokens, _ = first_two(target, draft, num_drafted)
    assert chi_square(tokens, target) < 59.0


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "the same"])
def test_the_bound_can_be_broken(name):
    """Negative control: with everything taken the tokens are the draft's."""
    assert chi_square(first_two(*PAIRS[name], 2, always)[0], PAIRS[name][0]) > 500


@each_pair
def test_as_many_are_taken_as_the_distributions_share(target, draft):
    """The first is taken with the sum of min(p, q): theorem 3.5 and corollary 3.6."""
    share = np.minimum(target[0], draft[0]).sum()
    assert abs((first_two(target, draft, 2)[1] > 0).mean() - share) <= 4 * np.sqrt(share * (1 - share) / NUM_ROWS) + 1e-6


def test_certain_distributions_take_what_agrees():
    """Greedy: one-hot both. As far as the draft agrees its tokens are taken, then comes the target's."""
    target_tokens, draft_tokens = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [0, 2, 3, 4]]), np.array([[1, 2, 3], [1, 0, 3], [1, 2, 3]])
    seeds, positions = jnp.arange(3, dtype=jnp.uint32), jnp.zeros(3, jnp.int32)
    taken, following = jax.jit(verify)(jnp.asarray(draft_tokens), jnp.eye(V)[draft_tokens], jnp.eye(V)[target_tokens], seeds, positions)
    assert taken.tolist() == [3, 1, 0] and following.tolist() == [4, 2, 0]


def test_a_row_is_judged_the_same_alone():
    target, draft = PAIRS["both full"]
    tokens = np.random.default_rng(0).integers(V, size=(50, 3))
    inputs = tokens[:, 1:], draft[tokens[:, :-1]], target[tokens], np.arange(50, dtype=np.uint32), np.arange(50) % 7
    judged = jax.jit(verify)
    together = np.stack(judged(*inputs), axis=1)
    alone = [np.concatenate(judged(*(part[row : row + 1] for part in inputs))) for row in range(50)]
    np.testing.assert_array_equal(together, alone)
    assert {0, 1, 2} == set(together[:, 0].tolist())
