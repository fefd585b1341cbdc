"""Random keys named by what they are for, never by where they are computed.

A dropout mask is a function of (seed, step, layer, site, sample, place or head): no mesh, process or microbatch enters, so any
layout draws the same masks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# What a key is for; the first number folded into the run's seed.
WEIGHTS, DROPOUT, SAMPLING, DRAFT, ACCEPTANCE, CORRECTION = range(6)
# Where a dropout mask is applied.
EMBEDDING, ATTENTION, ATTENTION_OUTPUT, MLP_OUTPUT = range(4)


def key(seed: int, *numbers):
    """The key of (seed, n0, n1, ...), by folding."""
    made = jax.random.key(seed)
    for number in numbers:
        made = jax.random.fold_in(made, number)
    return made


class Dropout(NamedTuple):
    """Which masks to draw: `key` of (seed, step, layer), and the global numbers of the samples and places at hand.

    `places_L` are those of the residual stream, of which a device may hold a part; `queries_L` and `keys_S` those of attention.
    """

    key: jax.Array
    samples_B: jax.Array
    places_L: jax.Array
    queries_L: jax.Array
    keys_S: jax.Array

    def at_layer(self, layer):
        return self._replace(key=jax.random.fold_in(self.key, layer))

    def hidden(self, x_BLD, site: int, rate: float):
        """x with its elements dropped at `rate` and the rest scaled up; one key for each (sample, place)."""
        if rate == 0.0:
            return x_BLD
        site_key = jax.random.fold_in(self.key, site)

        def kept(sample, place):
            return jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(site_key, sample), place), 1 - rate, x_BLD.shape[2:])

        keep_BLD = jax.vmap(jax.vmap(kept, (None, 0)), (0, None))(self.samples_B, self.places_L)
        return jax.lax.select(keep_BLD, x_BLD / (1 - rate), jnp.zeros_like(x_BLD))

    def attention(self, probs_BHLS, heads_H, rate: float):
        """Attention probabilities dropped at `rate`; 32 bits for each (sample, global head, place of the query, place of the key)."""
        if rate == 0.0:
            return probs_BHLS
        site_key = jax.random.fold_in(self.key, ATTENTION)

        def bits(sample, head, query):
            of_query = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(site_key, sample), head), query)
            return jax.vmap(lambda place: jax.random.key_data(jax.random.fold_in(of_query, place))[0])(self.keys_S)

        over_queries = jax.vmap(bits, (None, None, 0))
        over_heads = jax.vmap(over_queries, (None, 0, None))
        bits_BHLS = jax.vmap(over_heads, (0, None, None))(self.samples_B, heads_H, self.queries_L)
        keep_BHLS = ~(bits_BHLS < jnp.uint32(round(rate * 2**32)))  # less-than as in `hidden`: model/split.py keeps what it says
        return jnp.where(keep_BHLS, probs_BHLS / (1 - rate), jnp.zeros_like(probs_BHLS))
