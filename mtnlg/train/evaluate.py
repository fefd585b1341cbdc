"""Held-out loss: every token scored once, on the mesh."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.core.errors import NumericalError
from mtnlg.parallel import mesh as meshes


class Heldout(NamedTuple):
    """Sums over a held-out text: nats, and the number of scored tokens."""

    nats: float
    num_tokens: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens


def program(config: schema.Config, mesh: Mesh) -> Callable:
    """(params, batch, weights: [B, L] in the sequences' own order, as scores are) -> scalar sum of weighted nats, jitted."""
    score = spmd.score(config, mesh)

    def total(params, batch, weights):
        nll_BL, _ = score(params, batch)
        return (nll_BL * weights).sum()

    return jax.jit(total)


def heldout(score_program: Callable, mesh: Mesh, params, batches: Iterable[dict]) -> Heldout:
    """Runs over host batches [B, L]; the next one is sent before the last one's sum is read."""
    nats, pending, num_tokens = 0.0, 0.0, 0
    for batch in batches:
        weights = {"weights": batch["weights"]}
        total = score_program(params, meshes.put(mesh, batch), **meshes.put(mesh, weights, spmd.SCORES))
        nats, pending = nats + float(pending), total
        num_tokens += int(np.sum(batch["weights"] > 0))
    return Heldout(nats + float(pending), num_tokens)


def whole(found: Iterable[Heldout]) -> Heldout:
    """Of all texts together."""
    found = list(found)
    return Heldout(sum(one.nats for one in found), sum(one.num_tokens for one in found))


def require_useful(found: Iterable[Heldout], num_skipped: int, step: int) -> None:
    """Raises NumericalError for weights from which no loss comes, after so many skipped steps."""
    if not all(math.isfinite(one.nats) for one in found):
        what = f"steps were skipped, the last {num_skipped} one after the other, and the held-out loss is no number either"
        raise NumericalError(what, f"step {step}", "a lower --config.optimizer.learning_rate; what is saved is untouched")


def bits_per_byte(heldout: Heldout, num_bytes: int, vocab_size: int, num_texts: int = 1) -> float:
    """Bits per byte of the original text; the first token of each text, which has no context, is charged log(vocab_size)."""
    return (heldout.nats + num_texts * math.log(vocab_size)) / math.log(2) / num_bytes
