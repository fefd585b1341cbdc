"""What a run would be, without running it: sizes, and the compiled step's own account of its memory."""

import jax
import jax.numpy as jnp

from mtnlg.core import schema
from mtnlg.model import count
from mtnlg.parallel import mesh as meshes
from mtnlg.spmd import BATCH_FIELDS
from mtnlg.train import schedule
from mtnlg.train import state as states
from mtnlg.train import step as steps


def describe(config: schema.Config) -> str:
    """Compiles the training step for the devices at hand and says what it needs. Allocates no array."""
    mesh = meshes.make(config.mesh)
    rows = config.microbatch_rows
    shape = (config.train.batch_size // rows, rows, config.model.seq_len)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32 if name == "weights" else jnp.int32) for name in BATCH_FIELDS}
    state = states.abstract(config, mesh)
    compiled = steps.make(config, mesh).lower(state, batch, 1, 0, 0.0, False).compile()
    memory, end = compiled.memory_analysis(), schedule.final_position(config)
    lines = {
        "parameters": f"{count.num_params(config.model):,}",
        "FLOPs a token": f"{count.flops_per_token(config.model):,} (forward and backward, 6N + 12LHQT)",
        "tokens": f"{end.tokens:,} in {end.step:,} steps of up to {config.train.batch_size * config.model.seq_len:,}",
        "batch": f"{shape[0]} microbatches of {shape[1]} sequences of {shape[2]} tokens",
        "state": f"{sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)):,} bytes",
        "temporaries": f"{memory.temp_size_in_bytes:,} bytes, as the compiler plans them",
    }
    return "\n".join([f"{config.name}: the step compiles"] + [f"  {name:14} {value}" for name, value in lines.items()])
