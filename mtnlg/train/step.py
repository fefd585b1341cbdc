"""One optimizer step as one compiled program."""

import math

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg import spmd
from mtnlg.core import schema
from mtnlg.model.stats import group_norms
from mtnlg.parallel import timetable
from mtnlg.parallel.mesh import BATCH
from mtnlg.train import loss_scale
from mtnlg.train import optimizer as optimizers
from mtnlg.train import state as states
from mtnlg.train.state import State


def make(config: schema.Config, mesh: Mesh):
    """The jitted step: (state, batch, num_microbatches, step, learning_rate, with_norms, timetable) -> (state, metrics).

    state is donated. batch: fields [M, B, L] with M enough for the largest batch; num_microbatches of them are used. All scalars are
    traced, so that ramp, schedule and logging share one program; the timetable of a pipeline (`timetable.on_mesh`, else None) is too.
    metrics: scalars `loss` (nats per token), `grad_norm` (before clipping), `target_tokens`, `skipped` (bool), and `norms` ({'grad',
    'param': by group, 'activation': [N]}; zeros unless with_norms); in float16 also `loss_scale` (of this step) and `overflows` (bool).

    A step is skipped, its state going out as it came in, where the loss or the gradient's norm is no finite number, or that norm exceeds
    guard.max_grad_norm. In float16 the norm alone is not finite where the gradients overflow: then nothing moves but the loss scale.
    """
    optimizer, loss_and_grad, with_scale = optimizers.adamw(config.optimizer), scaled_sums(config, mesh), loss_scale.is_used(config)
    limit = math.inf if config.guard.max_grad_norm is None else config.guard.max_grad_norm

    def step(state: State, batch, num_microbatches, step_number, learning_rate, with_norms, table=None):
        sums = loss_and_grad(state, batch, num_microbatches, step_number, table)
        state, scale = (state._replace(optimizer=state.optimizer[:-1]), state.optimizer[-1]) if with_scale else (state, None)
        grads = jax.tree.map(lambda g: g / sums["weight"].astype(g.dtype), sums["grads"])
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        made = State(optimizers.apply(state.params, updates, learning_rate), optimizer_state)
        loss, grad_norm = sums["loss"] / sums["weight"], optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (grad_norm <= limit)

        def norms():
            return {
                "grad": group_norms(grads),
                "param": group_norms(state.params),
                "activation": jnp.sqrt(sums["squares_N"] / num_microbatches.astype(sums["squares_N"].dtype)),
            }

        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(norms))
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "target_tokens": sums["weight"],
            "skipped": ~good,
            "norms": jax.lax.cond(with_norms, norms, lambda: nothing),
        }
        made = jax.tree.map(lambda new, old: jnp.where(good, new, old), made, state)
        if with_scale:
            overflows = jnp.isfinite(loss) & ~jnp.isfinite(grad_norm)
            metrics |= {"loss_scale": scale.scale, "overflows": overflows}
            metrics["target_tokens"] /= loss_scale.of_a_token(config, scale.scale)
            moved = loss_scale.update(config.loss_scale, scale, overflows)
            scale = jax.tree.map(lambda new, old: jnp.where(good | overflows, new, old), moved, scale)
            made = made._replace(optimizer=(*made.optimizer, scale))
        return made, metrics

    # The state leaves as it came; otherwise the second step would be compiled again for the compiler's own choice of sharding.
    everywhere = NamedSharding(mesh, P())
    return jax.jit(step, donate_argnums=0, out_shardings=(states.shardings(config, mesh), everywhere))


def scaled_sums(config: schema.Config, mesh: Mesh):
    """`spmd.loss_and_grad` of a State: (state, batch, num_microbatches, step, timetable) -> sums.

    In float16 the weights, and with them all sums that they go into, are `loss_scale.of_a_token` times as large.
    """
    loss_and_grad = spmd.loss_and_grad(config, mesh)

    def sums(state: State, batch, num_microbatches, step_number, table=None):
        if loss_scale.is_used(config):
            batch = batch | {"weights": batch["weights"] * loss_scale.of_a_token(config, state.optimizer[-1].scale)}
        return loss_and_grad(state.params, batch, num_microbatches, step_number, table)

    return sums


def lower(config: schema.Config, mesh: Mesh):
    """The step, lowered for arrays that lie as in a run; nothing is allocated."""
    rows = config.microbatch_rows
    shape = (config.train.batch_size // rows, rows, config.model.seq_len)
    place = NamedSharding(mesh, P(None, *BATCH))
    dtypes = {"weights": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtypes.get(name, jnp.int32), sharding=place) for name in spmd.BATCH_FIELDS}
    table = timetable.abstract(config, mesh, shape[0])
    return make(config, mesh).lower(states.abstract(config, mesh), batch, 1, 0, 0.0, False, table)
