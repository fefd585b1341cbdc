"""Speculative decoding: a small model drafts tokens, the large one reads them all at once and takes as many as it would have written.

The tokens are distributed as the large model's own, whatever the draft is (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1 and
appendix A.1; Chen et al. 2023, arXiv 2302.01318).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtnlg.core import prng
from mtnlg.infer.programs import Rows, Told, tell
from mtnlg.infer.sampling import draw, probabilities, row_keys
from mtnlg.model.cache import IDLE


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


class Round(NamedTuple):
    """`told`: of every row P tokens one after the other, arrays [B * P]. Those that a row has taken count, and one more."""

    told: Told
    taken_B: jax.Array


def round_program(target: Callable, draft: Callable, num_drafted: int, num_ids: int, context: int) -> Callable:
    """A step of two models, each read by a program as `spmd.read` makes it: K tokens are drafted after every active row's last, and judged.

    (params, draft's params, rows, behind_B, cache, draft's cache, active_B, with_logprobs) -> (rows, behind_B, cache, draft's cache,
    Round). behind_B: the token before a row's last where the draft has not read it, else IDLE. Bias and penalties see what was drafted.
    """
    after_P = jnp.arange(num_drafted + 1)

    def run(params, draft_params, rows: Rows, behind_B, cache, draft_cache, active_B, with_logprobs):
        sampling, nobody_B = rows.sampling, jnp.zeros_like(behind_B)
        first_B = rows.positions_B + rows.dropped_B + 1  # the position of the first drafted token, by which it is drawn

        def place(number):
            """Where token `number` after a row's last is read. What would stand beyond the context never counts."""
            positions_B = rows.positions_B + number
            return jnp.where(active_B & (positions_B < context), positions_B, IDLE)

        def drafting(carry, number, tokens_BL, places_BL):
            _, history, draft_cache = carry
            last_B1 = jnp.full_like(tokens_BL[:, :1], tokens_BL.shape[1] - 1)
            logits_BPV, draft_cache = draft(draft_params, tokens_BL, places_BL, nobody_B, last_B1, draft_cache)
            probs_BV = probabilities(logits_BPV[:, 0, :num_ids], sampling, history)
            tokens_B = draw(jnp.log(probs_BV), row_keys(sampling.seed, prng.DRAFT, first_B + number))
            return (tokens_B, history.after(tokens_B), draft_cache), (tokens_B, probs_BV)

        def drafting_on(carry, number):
            return drafting(carry, number, carry[0][:, None], place(number)[:, None])

        def wanting(history, inputs):
            logits_BV, tokens_B = inputs
            return history.after(tokens_B), probabilities(logits_BV, sampling, history)

        two_BL = jnp.stack([jnp.maximum(behind_B, 0), rows.tokens_B], axis=1)
        places_BL = jnp.stack([jnp.where(behind_B == IDLE, IDLE, place(-1)), place(0)], axis=1)
        carry, drafted = drafting((rows.tokens_B, rows.history, draft_cache), 0, two_BL, places_BL)
        (_, _, draft_cache), more = jax.lax.scan(drafting_on, carry, jnp.arange(1, num_drafted))
        drafted_BK, drafted_BKV = jax.tree.map(lambda first, others: jnp.stack([first, *others], axis=1), drafted, more)

        tokens_BP = jnp.concatenate([rows.tokens_B[:, None], drafted_BK], axis=1)
        every_BP = jnp.broadcast_to(after_P, tokens_BP.shape)
        logits_BPV, cache = target(params, tokens_BP, jax.vmap(place, out_axes=1)(after_P), nobody_B, every_BP, cache)
        logits_BPV = logits_BPV[..., :num_ids]
        following_BP = jnp.pad(drafted_BK, ((0, 0), (0, 1)))  # of each place; after the last nothing was drafted
        _, wanted_PBV = jax.lax.scan(wanting, rows.history, (jnp.moveaxis(logits_BPV, 1, 0), following_BP.T))

        taken_B, next_B = verify(drafted_BK, drafted_BKV, jnp.moveaxis(wanted_PBV, 0, 1), sampling.seed, first_B)
        written_BP = jnp.where(after_P < taken_B[:, None], following_BP, next_B[:, None])
        counts_BP = (after_P <= taken_B[:, None]) & active_B[:, None]
        rows = rows._replace(
            tokens_B=jnp.where(active_B, next_B, rows.tokens_B),
            positions_B=rows.positions_B + jnp.sum(counts_BP, axis=1),
            history=rows.history.after(written_BP.T, counts_BP.T),
        )
        behind_B = jnp.where(active_B, jnp.where(taken_B == num_drafted, drafted_BK[:, -1], IDLE), behind_B)
        return (
            rows,
            behind_B,
            cache,
            draft_cache,
            Round(tell(logits_BPV.reshape(-1, num_ids), written_BP.reshape(-1), with_logprobs), taken_B),
        )

    return run
