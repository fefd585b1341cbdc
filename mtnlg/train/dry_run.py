"""What a run would be, without running it: sizes, and the compiled step's own account of its memory."""

import math

import jax

from mtnlg.core import schema
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import timetable
from mtnlg.train import schedule
from mtnlg.train import state as states
from mtnlg.train import step as steps


def describe(config: schema.Config) -> str:
    """Compiles the training step for the devices at hand and says what it needs. Allocates no array."""
    timetable.require(config)
    mesh = meshes.make(config.mesh)
    memory, end = steps.lower(config, mesh).compile().memory_analysis(), schedule.final_position(config)
    rows, state = config.microbatch_rows, jax.tree.leaves(states.abstract(config, mesh))
    microbatches = config.train.batch_size // rows
    stored = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in state)
    on_a_device = " on each of the devices" if mesh.size > 1 else ""
    lines = {
        "parameters": f"{count.num_params(config.model):,}",
        "FLOPs a token": f"{count.flops_per_token(config.model):,} (forward and backward, 6N + 12LHQT)",
        "tokens": f"{end.tokens:,} in {end.step:,} steps of up to {config.train.batch_size * config.model.seq_len:,}",
        "batch": f"{microbatches} microbatch{'es' * (microbatches > 1)} of {rows} sequences of {config.model.seq_len} tokens",
        "mesh": meshes.in_words(config.mesh),
        **_of_stages(config),
        "state": f"{stored:,} bytes{on_a_device}",
        "temporaries": f"{memory.temp_size_in_bytes:,} bytes{on_a_device}, as the compiler plans them",
    }
    return "\n".join([f"{config.name}: the step compiles"] + [f"  {name:14} {value}" for name, value in lines.items()])


def _of_stages(config: schema.Config) -> dict[str, str]:
    if config.mesh.pipe == 1:
        return {}
    return {"schedule": f"{config.pipeline.schedule}, {len(timetable.of_full_batch(config).ops)} ticks for the full batch"}
