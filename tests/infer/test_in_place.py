"""The cache stays where it is: a decoding step copies none of it."""

import re

import jax
import numpy as np
import pytest

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.infer.engine import Engine
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes


def step_program(donate: bool, apart: bool):
    """(the cache, the compiled decoding step of an 8-layer model): two rows of 512 slots."""
    model = schema.Model(num_layers=8, d_model=16, num_heads=2, vocab_size=32, position="rope")
    config = schema.Config(model=model, mesh=schema.Mesh(zero=0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), count.abstract_params(model))
    engine = Engine(config, meshes.make(config.mesh), params, num_rows=2, laid=spmd.Laid(apart=apart))
    programs, cache = engine.programs, engine.programs.empty_cache(512)
    step = programs.step if donate else jax.jit(programs.step.__wrapped__)
    return cache, step.lower(engine.params, programs.empty_rows(), cache, np.ones(2, bool), False).compile()


def whole_copies(cache, compiled) -> int:
    """How often the program copies the keys or values of all layers."""
    shape = ",".join(map(str, cache.keys.shape))
    return len(re.findall(rf"= \S*\[{shape}\]\S* copy(?:-start)?\(", compiled.as_text()))


def num_bytes(cache) -> int:
    return sum(leaf.nbytes for leaf in cache)


@pytest.mark.parametrize("apart", [False, True])
def test_decoding_updates_the_cache_in_place(apart):
    """The output is the input's memory, nothing copies a whole cache, and all else takes less than the caches of two layers of eight."""
    cache, compiled = step_program(donate=True, apart=apart)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= num_bytes(cache)
    assert whole_copies(cache, compiled) == 0
    assert memory.temp_size_in_bytes < 2 * num_bytes(cache) / 8


def test_a_cache_that_is_not_given_away_is_copied():
    """Negative control."""
    cache, compiled = step_program(donate=False, apart=False)
    assert compiled.memory_analysis().alias_size_in_bytes == 0
    assert whole_copies(cache, compiled) == 2
