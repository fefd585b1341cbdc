"""The training loop: steps over an iterator of batches. It knows no files; what happens beside the steps is the caller's."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from mtnlg.core import schema
from mtnlg.core.errors import NumericalError
from mtnlg.train import schedule
from mtnlg.train.schedule import Position
from mtnlg.train.state import State


class Batch(NamedTuple):
    """What one step reads: fields [M, B, L] on the mesh, how many of the microbatches and samples count, and their timetable."""

    fields: dict
    num_microbatches: int
    num_samples: int
    timetable: dict | None = None


class Report(NamedTuple):
    """What one step said, read when the next one is already running."""

    position: Position
    learning_rate: float
    metrics: dict


def run(
    config: schema.Config,
    step_program: Callable,
    state: State,
    position: Position,
    batches: Iterator[Batch],
    *,
    before_step: Callable[[State, Batch, Position], None],
    on_report: Callable[[Report], None],
    on_step: Callable[[State, Report], None],
    should_stop: Callable[[], bool],
    num_skipped: int = 0,
) -> tuple[State, Position, int]:
    """Trains from `position` to train.num_steps, or until should_stop(); and how many steps, one after the other, were skipped last.

    before_step sees what a step is about to read, and where the run is. on_step sees the state after each step, its metrics still on the
    device (evaluate, sample, save); on_report gets each step's metrics one step late, so that the device never waits for the host.
    num_skipped: steps skipped just before `position`. Raises NumericalError when they become guard.max_skipped, or when float16's
    gradients overflow at loss_scale.floor.
    """
    total_tokens = schedule.final_position(config).tokens
    pending: tuple[Report, bool] | None = None

    def deliver() -> None:
        nonlocal num_skipped
        report, with_norms = pending
        metrics = jax.device_get({name: value for name, value in report.metrics.items() if with_norms or name != "norms"})
        on_report(report._replace(metrics=metrics))
        if metrics.get("overflows"):  # not counted: it is how the loss scale is found
            if metrics["loss_scale"] <= config.loss_scale.floor:
                raise lowest(report)
            return
        num_skipped = num_skipped + 1 if metrics["skipped"] else 0
        if num_skipped >= config.guard.max_skipped:
            raise hopeless(num_skipped, report._replace(metrics=metrics))

    while position.step < config.train.num_steps and not should_stop():
        batch = next(batches)
        after = position.after(batch.num_samples, config.model.seq_len)
        rate = schedule.learning_rate(config.optimizer, after.tokens, total_tokens)
        every = config.log.norms_every_steps
        with_norms = every > 0 and after.step % every == 0
        before_step(state, batch, position)
        state, metrics = step_program(state, batch.fields, batch.num_microbatches, position.step, rate, with_norms, batch.timetable)
        position = after
        if pending is not None:
            deliver()
        report = Report(position, rate, metrics)
        pending = (report, with_norms)
        on_step(state, report)
    if pending is not None:
        deliver()
    return state, position, num_skipped


def hopeless(num_skipped: int, report: Report) -> NumericalError:
    """For a run whose last steps have all been skipped."""
    values = ", ".join(f"{name} is {float(report.metrics[name]):.4g}" for name in ("loss", "grad_norm"))
    what = f"{num_skipped} steps, one after the other, left the weights as they were: {values}"
    cure = "a lower --config.optimizer.learning_rate; what is saved is untouched"
    return NumericalError(what, f"step {report.position.step}", cure)


def lowest(report: Report) -> NumericalError:
    """For a run in float16 whose gradients overflow though their scale cannot fall any more."""
    what = f"the gradients overflow in float16 and the loss scale is at loss_scale.floor={float(report.metrics['loss_scale']):g}"
    cure = "--config.train.compute_dtype=bfloat16, or a lower --config.optimizer.learning_rate; what is saved is untouched"
    return NumericalError(what, f"step {report.position.step}", cure)
