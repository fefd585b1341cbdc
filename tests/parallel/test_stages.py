"""Which stage holds which layers: as quick as lockstep lets it be, and whole on every mesh."""

import dataclasses

import numpy as np
import pytest

from mtnlg.core import schema
from mtnlg.parallel import lockstep, schedule, stages

SMALL = schema.Model(num_layers=24, d_model=1024, num_heads=16, vocab_size=50304, seq_len=1024)
LARGE = schema.Model(num_layers=24, d_model=2048, num_heads=16, vocab_size=50304, seq_len=2048)
LLAMA = schema.Model(
    num_layers=32, d_model=4096, num_heads=32, num_kv_heads=8, d_ff=14336, activation="swiglu", vocab_size=128256, seq_len=8192
)


def makespan(model, num_stages, layers, recompute) -> float:
    train = schema.Train(batch_size=8 * num_stages, microbatch_size=1, recompute=recompute)
    pipeline = schema.Pipeline(layers_per_stage=layers)
    config = schema.Config(model=model, train=train, mesh=schema.Mesh(pipe=num_stages), pipeline=pipeline)
    table = schedule.make(pipeline, num_stages, 8 * num_stages, recompute == "full")
    return lockstep.makespan(table, stages.costs(config))


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize(("model", "num_stages"), [(SMALL, 4), (LARGE, 4), (LLAMA, 4), (LLAMA, 8)])
def test_no_other_share_for_the_last_stage_is_quicker(model, num_stages, recompute):
    """Every number of layers beside the head, the rest spread evenly; 1 % for the ticks at the ends, which the rule leaves out."""
    config = schema.Config(model=model, mesh=schema.Mesh(pipe=num_stages), train=schema.Train(recompute=recompute))
    chosen = tuple(stages.of(config).counts.ravel().tolist())

    def spread(last):
        return tuple(map(len, np.array_split(range(model.num_layers - last), num_stages - 1))) + (last,)

    best = min(makespan(model, num_stages, spread(last), recompute) for last in range(model.num_layers // num_stages + 2))
    assert makespan(model, num_stages, chosen, recompute) <= 1.01 * best
    if recompute == "none":
        even = (model.num_layers // num_stages,) * num_stages
        assert makespan(model, num_stages, chosen, recompute) < makespan(model, num_stages, even, recompute)


def test_mt_nlg_has_three_layers_everywhere():
    model = schema.Model(num_layers=105, d_model=20480, num_heads=128, vocab_size=51200, seq_len=2048)
    config = schema.Config(model=model, mesh=schema.Mesh(pipe=35), train=schema.Train(recompute="full"))
    assert set(stages.of(config).counts.ravel().tolist()) == {3}


@pytest.mark.parametrize("name", schema.SCHEDULES)
@pytest.mark.parametrize("num_layers", [7, 8, 13])
def test_every_layer_has_one_place(name, num_layers):
    """And the parts of the model follow one another in its order."""
    model = dataclasses.replace(SMALL, num_layers=num_layers)
    config = schema.Config(model=model, mesh=schema.Mesh(pipe=4), pipeline=schema.Pipeline(schedule=name))
    cut = stages.of(config)
    by_virtual = [cut.layers[tuple(np.argwhere(cut.placement == virtual)[0])] for virtual in range(cut.placement.size)]
    flat = np.concatenate(by_virtual)
    np.testing.assert_array_equal(flat[flat >= 0], np.arange(num_layers))
