"""Every collective of one training step, by arithmetic on the config alone: nothing is traced.

`issued.py` says what `spmd.py` is meant to send, and here it is counted. `lowered.py` counts what its program does send, and the tests
hold both to be the same. A step is that of the full batch. With stages each part counts as on the stage that runs it most: a layer as
on the stage with most layers, the embedding as on the first, the head as on the last.
"""

from collections import Counter
from typing import NamedTuple

from mtnlg.core import schema
from mtnlg.parallel import stages, timetable
from mtnlg.plan.issued import Collective, StageStep, Step

PARTS = ("layer, forward", "layer, backward", "microbatch", "tick", "step")


class Row(NamedTuple):
    """A collective that each layer, microbatch, tick or step issues `times` times; a step has `repeats` of those."""

    part: str
    collective: Collective
    times: int
    repeats: int

    @property
    def count(self) -> int:
        """How often in one step."""
        return self.times * self.repeats


def predict(config: schema.Config) -> list[Row]:
    """The collectives of one training step."""
    step = (StageStep if config.mesh.pipe > 1 else Step)(config)
    microbatches = config.train.batch_size // config.microbatch_rows
    layers = int(stages.of(config).counts.sum(axis=1).max()) * microbatches
    ticks = len(timetable.of_microbatches(config, microbatches).ops) if config.mesh.pipe > 1 else 0
    repeats = dict(zip(PARTS, (layers, layers, microbatches, ticks, 1), strict=True))
    issued = dict(zip(PARTS, (step.forward, step.backward, step.microbatch, step.tick, step.once), strict=True))
    return [Row(part, *item, repeats[part]) for part in PARTS for item in Counter(issued[part]()).items()]


def totals(rows: list[Row]) -> Counter:
    """{collective: how often in one step}."""
    found = Counter()
    for row in rows:
        found[row.collective] += row.count
    return found
