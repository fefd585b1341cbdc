"""Figure 6: what is no number never reaches the weights."""

import jax
import numpy as np

from benchmarks.figures import Figure
from benchmarks.soak_train.runs import random_batch
from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states
from mtnlg.train import step as steps

_MODEL = schema.Model(num_layers=2, d_model=16, num_heads=2, seq_len=16, vocab_size=300)
_ROWS = 4


def not_numbers(count: int) -> Figure:
    """At every other step one weight of the batch is NaN, infinite, or so large that the sum of gradients is."""
    config = schema.Config(model=_MODEL, train=schema.Train(batch_size=_ROWS), mesh=schema.Mesh(data=2, tensor=2))
    mesh, random = meshes.make(config.mesh), np.random.default_rng(0)
    state, program = states.make(config, mesh), steps.make(config, mesh)
    still = moved = 0
    for number in range(2 * count):
        batch = random_batch(_MODEL, _ROWS, random)
        if number % 2:
            batch["weights"][tuple(map(random.integers, batch["weights"].shape))] = random.choice([np.nan, np.inf, -np.inf, 3e38])
        before = jax.device_get(state)
        state, metrics = program(state, meshes.put_rows(mesh, batch, _ROWS), 1, number, 0.01, False)
        same = all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (before, jax.device_get(state))), strict=True))
        still += bool(number % 2) and same and bool(metrics["skipped"])
        moved += not number % 2 and not same and not metrics["skipped"]
    measured = f"{still} of {count} moved nothing, {moved} of {count} steps between them moved the weights"
    return Figure(f"{count} batches that are no numbers move nothing", measured, still == moved == count)
