"""Figure 9: what it costs to judge every step, and to save."""

import pathlib
import time
import types
from unittest import mock

import jax
import numpy as np

from benchmarks.figures import Figure
from benchmarks.soak_train.runs import Inputs, random_batch
from benchmarks.train_step import SIZES
from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.run import goodput
from mtnlg.train import state as states
from mtnlg.train import step as steps

_MOST_OF_GUARDS, _MOST_OF_SAVES = 1.02, 1.05
_SMALL = ("--config.model.num_layers=4", "--config.model.d_model=256", "--config.model.num_heads=4", "--config.model.seq_len=256")
_SMALL += ("--config.model.vocab_size=400", "--config.train.batch_size=16", "--config.train.unroll_layers=true")


def guards(pairs: int = 40) -> Figure:
    """A step of size S with its guard, and the same step without, which keeps whatever comes out; in turns, in one process."""
    model, rows = SIZES["S"]
    config = schema.Config(model=model, train=schema.Train(batch_size=rows, unroll_layers=True))
    mesh = meshes.make(config.mesh)
    batch = random_batch(model, rows, np.random.default_rng(0))

    def timed(program, state) -> tuple[float, states.State]:
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, batch, 1, 0, 1e-4, False))
        return time.perf_counter() - begin, state

    blind = types.SimpleNamespace(**vars(steps.jnp) | {"where": lambda is_good, new, old: new})
    guarded, unguarded = steps.make(config, mesh), steps.make(config, mesh)
    _, one = timed(guarded, states.make(config, mesh))
    with mock.patch.object(steps, "jnp", blind):  # while it is traced
        _, other = timed(unguarded, states.make(config, mesh))
    ratios = []
    for number in range(pairs):
        if number % 2:
            with_secs, one = timed(guarded, one)
            without_secs, other = timed(unguarded, other)
        else:
            without_secs, other = timed(unguarded, other)
            with_secs, one = timed(guarded, one)
        ratios.append(with_secs / without_secs)
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    measured = f"{ratio:.3f} (quarters {low:.3f} to {high:.3f}, {pairs} pairs)"
    return Figure(f"a guarded step takes at most {_MOST_OF_GUARDS} x", measured, bool(ratio <= _MOST_OF_GUARDS))


def saves(folder: pathlib.Path, num_steps: int = 200, repeats: int = 2) -> Figure:
    """A run that saves half-way and at its end, and waits for both, against one that only saves at its end, which does not count."""
    inputs, totals = Inputs(folder), {True: [], False: []}
    for number in range(repeats):
        for is_saving in (True, False):
            workdir = folder / f"run{number}{is_saving}"
            every = num_steps // 2 if is_saving else 10 * num_steps
            steps_of_it = (f"--config.train.num_steps={num_steps}", f"--config.checkpoint.every_steps={every}")
            inputs.whole(workdir, *_SMALL, *steps_of_it, "--config.log.every_steps=10", f"--config.data.directory={folder / 'tokens'}")
            secs = goodput.read(workdir / goodput.FILE).secs
            totals[is_saving].append(secs["step"] + secs["data"] + is_saving * secs["save"])
    ratio = float(np.median(totals[True]) / np.median(totals[False]))
    told = [", ".join(f"{secs:.1f}" for secs in totals[is_saving]) for is_saving in (True, False)]
    measured = f"{ratio:.3f} ({told[0]} s with, {told[1]} s without)"
    target = f"{num_steps} steps with a save every {num_steps // 2} take at most {_MOST_OF_SAVES} x"
    return Figure(target, measured, ratio <= _MOST_OF_SAVES)
