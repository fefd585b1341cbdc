"""Callers that share an engine lose nothing and leave nothing behind, and what an engine cannot do is refused at once."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from numpy_gpt import init
from test_engine import SEQ_LEN, SPECS, by_forwards, engine, make, small_blocks  # noqa: F401, fixtures

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, TemporaryFailure
from mtnlg.infer import chunks
from mtnlg.infer.engine import Engine
from mtnlg.infer.request import Request
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import specs

LONG, SHORT = Request([1, 2, 3], 8, temperature=0.0), Request([4, 5], 2, temperature=0.0)


def test_a_run_hears_of_what_ended_in_another_ones_steps(engine):  # noqa: F811
    expected = engine.generate([LONG, SHORT])
    long, short = engine.run([LONG]), engine.run([SHORT])
    told = [[next(long)], [next(short)]]
    told[0] += long
    told[1] += short
    assert [[event.token.id for event in events] for events in told] == expected


def test_closed_runs_leave_no_events_behind(engine):  # noqa: F811
    runs = [engine.run([LONG]), engine.run([LONG])]
    for run in (runs[0], runs[1], runs[1]):
        next(run)
    for run in runs:
        run.close()
    assert [event for _ in range(3) for event in engine.step()] == []


def test_an_interrupted_step_drops_what_was_under_way_and_says_so(monkeypatch):
    """Whoever waits for it hears of that; the engine writes on."""
    _, _, engine = make("learned", seed=9)  # noqa: F811
    waiting, step = engine.run([LONG]), engine.programs.step
    next(waiting)

    def interrupted(*arguments):
        step(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine.programs, "step", interrupted)
        engine.generate([SHORT])
    with pytest.raises(TemporaryFailure, match="the text was dropped"):
        list(waiting)
    assert len(engine.generate([SHORT])[0]) == 2


def test_weights_that_change_while_a_prompt_is_read():
    """Nothing that was read with the old ones is taken for theirs."""
    _, _, engine = make("learned", seed=7)  # noqa: F811
    others = init(SPECS["learned"], SEQ_LEN, np.random.default_rng(8))
    request = Request([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 4, temperature=0.0)
    engine.submit(request)
    engine.step()
    engine.load(others)
    while engine.busy:
        engine.step()
    assert engine.generate([request]) == [by_forwards(SPECS["learned"], others, request)]


def test_no_group_of_devices_waits_for_another_ones_prompts(monkeypatch):
    """A short prompt beside ever new long ones, whose chunks have another length."""
    monkeypatch.setattr(chunks, "SHORTEST", 1)
    _, params, single = make("learned")
    config = replace(single.config, mesh=schema.Mesh(data=2))
    made = meshes.make(config.mesh)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    spread = Engine(
        config, made, jax.tree.map(jax.device_put, params, specs.shardings(made, specs.storage_table(config), params)), num_rows=2
    )
    spread.submit(Request([1] * 8, 1))
    short = spread.submit(Request([2], 1))
    for id in range(6):
        spread.submit(Request([id] * 8, 1))
    assert short in [event.number for _ in range(4) for event in spread.step()]


@pytest.mark.parametrize("settings", [{"num_rows": 0}, {"context": 0}, {"context": -1}])
def test_an_engine_without_room_is_refused(settings):
    with pytest.raises(ConfigError, match="is out of range"):
        make("learned", **settings)


@pytest.mark.parametrize("length", [0, SEQ_LEN + 1])
def test_a_text_that_the_context_does_not_hold_is_not_scored(engine, length):  # noqa: F811
    assert len(engine.score([1] * SEQ_LEN, 0)) == SEQ_LEN
    with pytest.raises(ConfigError, match=f"a text of {length} tokens, where 1 to {SEQ_LEN} can be read"):
        engine.score([1] * length, 0)


@pytest.mark.parametrize("setting", [{"temperature": 10**400}, {"repetition_penalty": 10**400}, {"repetition_penalty": 1e-300}])
def test_numbers_that_float32_does_not_hold_are_refused(engine, setting):  # noqa: F811
    with pytest.raises(ConfigError, match="is out of range"):
        engine.generate([Request([1], 2, **setting)])
