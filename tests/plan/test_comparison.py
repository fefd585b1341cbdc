"""All schedules side by side: the numbers are those of each alone."""

import dataclasses

import pytest

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, MissingInput
from mtnlg.parallel import lockstep, program, schedule, schedule_file, stages
from mtnlg.plan import activations, comparison
from mtnlg.plan.text import size

MODEL = schema.Model(num_layers=10, d_model=32, num_heads=4, vocab_size=64, vocab_multiple=64, seq_len=8)


def config_of(microbatches: int = 8, **pipeline) -> schema.Config:
    train = schema.Train(batch_size=microbatches, microbatch_size=1, recompute="full")
    return schema.Config(model=MODEL, train=train, mesh=schema.Mesh(pipe=4), pipeline=schema.Pipeline(**pipeline))


def lines_of(config: schema.Config) -> dict[str, list[str]]:
    """The words of each row of the table, by schedule."""
    lines = comparison.table(config, comparison.rows(config)).splitlines()
    assert lines[2].split() == ["schedule", "chunks", "ticks", "makespan", "bubble", "in", "flight", *comparison.HEADS[7:]]
    cells = [line.split() for line in lines[3 : lines.index("", 3)]]
    return {words[words[0] == "*"]: words for words in cells}


def test_the_numbers_are_those_of_each_alone():
    config = config_of(schedule="zero_bubble", in_flight=3)
    found = lines_of(config)
    assert list(found) == list(schema.SCHEDULES)
    assert [name for name, words in found.items() if words[0] == "*"] == ["zero_bubble"]
    for name, words in found.items():
        one = dataclasses.replace(config, pipeline=dataclasses.replace(config.pipeline, schedule=name))
        made, costs = schedule.make(one.pipeline, 4, 8, True), stages.costs(one)
        sizes = program.compile(made).sizes
        slot = activations.slot_bytes(one)
        num_bytes = (sizes[0] + 1) * slot.mail + sizes[1] * slot.kept + sizes[2] * slot.deferred
        chunks = made.placement.shape[1]
        expected = [chunks, len(made.ops), f"{lockstep.makespan(made, costs):.1f}", f"{lockstep.bubble(made, costs).mean():.1%}"]
        expected += [lockstep.in_flight(made).max(), *sizes, *size(num_bytes).split()]
        messages = 2 * 8 * {"interleaved": 7, "zb_v": 6}.get(name, 3)
        assert words[words.index(name) + 1 :] == [*map(str, expected), str(messages)]


def test_a_schedule_that_cannot_be_has_its_reason():
    config = config_of(microbatches=6)
    lines = comparison.table(config, comparison.rows(config)).splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["interleaved"]]
    assert line.split(maxsplit=1)[1].startswith("train.batch_size=6 makes 6 microbatches, no multiple of mesh.pipe=4, as pipeline.sch")
    ramp = dataclasses.replace(config_of().train, ramp_start_size=4, ramp_increment=2, ramp_samples=8)
    (reason,) = [row.step for row in comparison.rows(dataclasses.replace(config_of(), train=ramp)) if isinstance(row.step, str)]
    assert reason.startswith("train.ramp_increment=2 makes 2 microbatches")
    few = dataclasses.replace(config_of(), model=dataclasses.replace(MODEL, num_layers=6))
    reasons = {row.name: row.step for row in comparison.rows(few) if isinstance(row.step, str)}
    assert reasons.keys() == {"interleaved", "zb_v"} and all(
        "cannot fill mesh.pipe=4 stages of 2 chunks" in one for one in reasons.values()
    )
    given = config_of(layers_per_stage=(1, 2, 3, 4))
    reasons = {row.name: row.step for row in comparison.rows(given) if isinstance(row.step, str)}
    assert reasons.keys() == {"interleaved", "zb_v"} and all("is not 8 numbers" in reason for reason in reasons.values())


def test_nothing_can_be():
    config = config_of(layers_per_stage=(1, 2))
    assert all("is not" in " ".join(words) for words in lines_of(config).values())


def test_a_table_of_ones_own_comes_last(tmp_path):
    path = str(tmp_path / "own.csv")
    schedule_file.write_csv(schedule.gpipe(4, 8, True), path)
    found = lines_of(config_of(schedule=path))
    assert list(found) == [*schema.SCHEDULES, path] and found[path][0] == "*"
    assert found[path][2:] == found["gpipe"][1:]


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        (config_of(schedule="none.csv"), MissingInput, "cannot read the schedule"),
        (config_of(schedule="1f1c"), ConfigError, "Try: --config.pipeline.schedule=1f1b"),
        (dataclasses.replace(config_of(), mesh=schema.Mesh()), ConfigError, "Try: --config.mesh.pipe=4"),
    ],
)
def test_a_fault_of_the_config_is_no_row(config, error, says):
    with pytest.raises(error, match=says):
        comparison.rows(config)
