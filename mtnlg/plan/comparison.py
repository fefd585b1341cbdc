"""All schedules side by side for one config: what each would take, and why one cannot be."""

import dataclasses
from typing import NamedTuple

from mtnlg.core import schema, validate
from mtnlg.core.errors import ConfigError
from mtnlg.plan import text, timeline
from mtnlg.plan.timeline import Timeline

HEADS = ("", "schedule", "chunks", "ticks", "makespan", "bubble", "in flight", "mailbox", "kept", "deferred", "activations", "messages")
NOTES = """
* the config's own. Makespan in forwards of one block, each tick as long as its longest op; bubble: on average over the stages.
In flight (microbatches, once for each chunk): the most of any stage. Mailbox, kept, deferred: slots that each device reserves.
Activations: bytes of these slots and a spare one on a device; what an op needs while it runs comes on top.
Messages of a step that another stage waits for; each device sends two a tick, wanted or not.""".strip()


class Row(NamedTuple):
    """A schedule under a config: its step, or why there is none."""

    name: str
    is_own: bool
    step: Timeline | str


def rows(config: schema.Config) -> list[Row]:
    """One for each schedule that has a name, and one for the config's own table. Raises as `timeline.of` when the config is at fault."""
    timeline.require_stages(config)
    own = config.pipeline.schedule
    found = [Row(name, name == own, _step(config, name)) for name in schema.SCHEDULES]
    return found if own in schema.SCHEDULES else [*found, Row(own, True, timeline.of(config))]


def _step(config: schema.Config, name: str) -> Timeline | str:
    other = _with_schedule(config, name)
    if problems := validate.problems(other):
        return problems[0]
    try:
        return timeline.of(other)
    except ConfigError as error:
        return error.what


def _with_schedule(config: schema.Config, name: str) -> schema.Config:
    """Without what only the config's own schedule takes."""
    pipeline = config.pipeline
    if name != pipeline.schedule:
        pipeline = dataclasses.replace(pipeline, schedule=name, chunks=None, in_flight=None)
    return dataclasses.replace(config, pipeline=pipeline)


def table(config: schema.Config, found: list[Row]) -> str:
    """The rows as lines, a schedule that cannot be with its reason."""
    cells = [(_mark(row), row.name, *_numbers(row.step)) for row in found if isinstance(row.step, Timeline)]
    wide = max(len(row.name) for row in found)
    lines = text.table([(HEADS[0], f"{HEADS[1]:{wide}}", *HEADS[2:]), *cells], "<<" + ">" * 10)
    head, made = lines[0], iter(lines[1:])
    lines = [next(made) if isinstance(row.step, Timeline) else f"{_mark(row):1}  {row.name:{wide}}  {row.step}" for row in found]
    title = f"{config.name}: {config.mesh.pipe} stages, {timeline.counted(config)}, {config.model.num_layers} layers"
    return "\n".join([title, "", head, *lines, "", NOTES])


def _mark(row: Row) -> str:
    return "*" if row.is_own else ""


def _numbers(one: Timeline) -> tuple[str, ...]:
    counts = (one.in_flight.max(), *one.program.sizes)
    times = (str(one.num_chunks), str(one.num_ticks), f"{one.makespan:,.1f}", f"{one.bubble.mean():.1%}")
    return (*times, *map(str, counts), text.size(one.reserved_bytes), str(one.num_messages))
