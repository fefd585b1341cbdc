"""Speculative decoding: a small model drafts tokens, the large one reads them all at once and takes as many as it would have written.

The tokens are distributed as the large model's own, whatever the draft is (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1 and
appendix A.1; Chen et al. 2023, arXiv 2302.01318).
"""

import jax
import jax.numpy as jnp

from mtnlg.core import prng
from mtnlg.infer.sampling import draw, row_keys


def verify(draft_tokens_BK, draft_probs_BKV, target_probs_BPV, seed_B, positions_B):
    """(how many of the K drafted tokens are taken [B], the token that follows those [B]) of each row; both int32.

    draft_probs_BKV: what each was drawn from; target_probs_BPV, P = K + 1: the target's distributions in their places and in the one
    after them. positions_B: of the first drafted token. A token's fate hangs on seed and position alone, given what stands before it.
    """
    num_rows, num_drafted = draft_tokens_BK.shape
    places = (positions_B[:, None] + jnp.arange(num_drafted)).reshape(-1)
    chances = jax.vmap(jax.random.uniform)(row_keys(jnp.repeat(seed_B, num_drafted), prng.ACCEPTANCE, places))
    chosen = draft_tokens_BK[..., None]
    drafted_BK, wanted_BK = (jnp.take_along_axis(x, chosen, axis=-1)[..., 0] for x in (draft_probs_BKV, target_probs_BPV[:, :-1]))
    takes_BK = chances.reshape(num_rows, num_drafted) * drafted_BK < wanted_BK
    taken_B = jnp.sum(jnp.cumprod(takes_BK, axis=1), axis=1)
    # In the place after the drafted ones nothing was drafted: all of the target's distribution is left of it.
    drafted_BPV = jnp.pad(draft_probs_BKV, ((0, 0), (0, 1), (0, 0)))
    target_BV, drafted_BV = (jnp.take_along_axis(x, taken_B[:, None, None], axis=1)[:, 0] for x in (target_probs_BPV, drafted_BPV))
    rest_BV = jnp.maximum(target_BV - drafted_BV, 0)
    # Two distributions that differ by rounding alone may leave nothing.
    rest_BV = jnp.where(jnp.any(rest_BV > 0, axis=-1, keepdims=True), rest_BV, target_BV)
    next_B = draw(jnp.log(rest_BV), row_keys(seed_B, prng.CORRECTION, positions_B + taken_B))
    return taken_B.astype(jnp.int32), next_B
