"""What weights or a cache in eight bits cost, and what they save: the same texts, read exactly and then through what was narrowed."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtnlg.infer.engine import Engine
from mtnlg.infer.request import Request
from mtnlg.model import cache as caches

NUM_TEXTS = 16
TEXT_TOKENS = 33  # of each that the model writes, with what it begins with
PART_TOKENS = 512  # of each part of a file


class Cost(NamedTuple):
    """nats: more per token, with its standard error over the texts, and over how many tokens. own_text: the exact model wrote them.

    The others are pairs (exact, narrowed): bytes of all weights, and of a token in the cache.
    """

    nats: float
    standard_error: float
    num_tokens: int
    own_text: bool
    weight_bytes: tuple[int, int]
    cache_bytes: tuple[int, int]


class Reading(NamedTuple):
    """Texts of ids, the log-probability of each id but the first, and the bytes of weights and of a token in the cache."""

    texts: list[list[int]]
    logprobs: list[np.ndarray]
    own_text: bool
    weight_bytes: int
    cache_bytes: int


def written(engine: Engine, start_ids: Sequence[int]) -> Reading:
    """Texts that an engine writes at temperature 1, past the ends of documents too, as it reads them itself."""
    num_new = max(engine.context - len(start_ids), 1)
    asked = [Request(start_ids, num_new, temperature=1.0, top_p=1.0, seed=seed) for seed in range(NUM_TEXTS)]
    return read(engine, [[*start_ids, *ids] for ids in engine.generate(asked)], own_text=True)


def parted(ids: Sequence[int], length: int) -> list[list[int]]:
    """A text as at most `NUM_TEXTS` texts of at most `length` ids; what is left over is not read."""
    parts = [list(ids[start : start + length]) for start in range(0, min(len(ids), NUM_TEXTS * length), length)]
    return [part for part in parts if len(part) > 1]


def read(engine: Engine, texts: list[list[int]], own_text: bool) -> Reading:
    """Through the engine's cache, as prompts are."""
    logprobs = [np.array([token.logprob for token in engine.score(ids, 0)[1:]]) for ids in texts]
    slot = jax.eval_shape(lambda: engine.programs.empty_cache(caches.BLOCK, engine.num_groups))
    cache_bytes = _num_bytes(slot) // (caches.BLOCK * engine.num_groups)
    return Reading(texts, logprobs, own_text, _num_bytes(engine.params), cache_bytes)


def cost(exact: Reading, narrowed: Reading) -> Cost:
    """Of texts that the exact model drew it is the Kullback-Leibler divergence: the mean of q / p - 1 - log(q / p), whose expectation that
    is, with far less variance than -log(q / p) has (Schulman 2020, "Approximating KL divergence", k3). Of others the loss's difference.
    """
    differences = [b - a for a, b in zip(exact.logprobs, narrowed.logprobs, strict=True)]
    of_tokens = [np.expm1(d) - d if exact.own_text else -d for d in differences]
    counts, sums = np.array([len(d) for d in of_tokens]), np.array([d.sum() for d in of_tokens])
    mean = sums.sum() / counts.sum()
    spread = np.sqrt(np.sum((sums - mean * counts) ** 2) * len(counts) / max(len(counts) - 1, 1)) / counts.sum()
    pairs = ((exact.weight_bytes, narrowed.weight_bytes), (exact.cache_bytes, narrowed.cache_bytes))
    return Cost(float(mean), float(spread), int(counts.sum()), exact.own_text, *pairs)


def told(cost: Cost) -> str:
    """In one line."""
    weights, slot = (f"{_short(narrowed)} instead of {_short(exact)}" for exact, narrowed in (cost.weight_bytes, cost.cache_bytes))
    of = "Kullback-Leibler divergence over {} that the exact model wrote" if cost.own_text else "more loss on {} of the text"
    saved = f"eight bits: weights of {weights}, {slot} a token in the cache"
    return f"{saved}; they cost {cost.nats:.2g} ± {cost.standard_error:.1g} nats a token ({of.format(f'{cost.num_tokens} tokens')})"


def _short(num_bytes: int) -> str:
    unit, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if num_bytes >= pair[0]), (1, "bytes"))
    return f"{num_bytes / unit:.3g} {name}"


def _num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
