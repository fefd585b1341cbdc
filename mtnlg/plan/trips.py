"""How often the loops of a step are run whose bounds its program does not know, by their names in the program."""

import numpy as np

from mtnlg import pipeline, spmd
from mtnlg.core import schema
from mtnlg.parallel import stages, timetable
from mtnlg.parallel.table import Op


def of(config: schema.Config) -> dict[str, int]:
    """{name: turns in one step of the full batch, of all its runs together}.

    With stages of each loop on the stage that runs it most, as the timetable says: embedding on the first, head on the last.
    """
    num_microbatches = config.train.batch_size // config.microbatch_rows
    if config.mesh.pipe == 1:
        return {spmd.MICROBATCHES: num_microbatches}
    schedule, cut = timetable.of_microbatches(config, num_microbatches), stages.of(config)
    layers_TP = cut.counts[np.arange(config.mesh.pipe), schedule.chunks]
    found = {op.name: int(np.where(schedule.ops == op, layers_TP, 0).sum(axis=0).max()) for op in Op if op != Op.IDLE}

    def times(virtual_stage: int, *ops: Op) -> int:
        return int((np.isin(schedule.ops, ops) & (schedule.virtual_stages == virtual_stage)).sum())

    return found | {
        pipeline.TICKS: len(schedule.ops),
        pipeline.EMBEDDING: times(0, Op.F, Op.R),
        pipeline.EMBEDDING_BACKWARD: times(0, Op.B),
        pipeline.HEAD: times(cut.placement.max(), Op.B),
    }
