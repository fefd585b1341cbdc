"""Steps that are skipped: nothing of the state moves, the run goes on, and it stops when there are too many; stopped anywhere, the same."""

import signal

import jax
import numpy as np
import pytest
from runs import arrays, require_same

from mtnlg import checkpoint
from mtnlg.core import fault
from mtnlg.core.errors import NumericalError
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import run as pretrain
from mtnlg.pretrain.telling import Telling
from mtnlg.run import metrics
from mtnlg.train import state as states
from mtnlg.train import step as steps

BATCH = 4  # samples of a step


@pytest.fixture
def poison(monkeypatch):
    """A function: in the batches of these steps no weight is a number."""
    return lambda *numbers: monkeypatch.setenv(fault.VARIABLE, ";".join(f"nan@phase:batch,step:{number}" for number in numbers))


@pytest.fixture
def stop_after(monkeypatch):
    """A function: a signal comes when this step is told of, while the next is under way."""

    def stopping(step):
        original = Telling.report

        def report(self, told, stands_out):
            original(self, told, stands_out)
            if told.position.step == step:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Telling, "report", report)
        return lambda: monkeypatch.setattr(Telling, "report", original)

    return stopping


def lines(workdir):
    return [line for line in metrics.read(workdir / "metrics.jsonl") if "heldout_loss" not in line]


@pytest.mark.parametrize("mesh", [{}, {"mesh__data": "2", "mesh__tensor": "2", "mesh__zero": "3"}])
@pytest.mark.parametrize("changes", [{"guard__max_grad_norm": "1e-9"}, {}])
def test_a_skipped_step_moves_nothing(resolve, mesh, changes):
    """Neither weights nor moments nor their count; the same program moves them when its batch is whole."""
    config = resolve(**mesh, **changes)
    made = meshes.make(config.mesh)
    state, program = states.make(config, made), steps.make(config, made)
    before = jax.device_get(state)
    shape = (1, BATCH, config.model.seq_len)
    fields = {name: np.ones(shape, np.int32) for name in ("tokens", "targets", "segment_ids")}
    fields |= {"positions": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)}
    fields |= {"weights": np.full(shape, 1 if changes else np.nan, np.float32)}

    def stepped(state, fields):
        return program(state, meshes.put_rows(made, fields, BATCH), 1, 0, 0.1, False)

    state, told = stepped(state, fields)
    assert bool(told["skipped"]) and np.isfinite(told["loss"]) == bool(changes)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    if not changes:
        state, told = stepped(state, fields | {"weights": np.ones(shape, np.float32)})
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), jax.device_get(state), before)
        assert not told["skipped"] and all(jax.tree.leaves(moved.optimizer))


def test_a_run_goes_on_behind_a_skipped_step(resolve, tmp_path, poison, capsys):
    poison(3)
    pretrain.pretrain(resolve(checkpoint__every_steps="1"), str(tmp_path), {})
    assert [line.get("skipped", False) for line in lines(tmp_path)] == [step == 3 for step in range(1, 7)]
    assert lines(tmp_path)[2]["non_finite"] == ["loss", "grad_norm"]
    assert "step 3 is skipped, the weights stay as they were: loss nan, gradient norm nan" in capsys.readouterr().out
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == [1, 2, 4, 5, 6], "what has not moved is not saved again"
    assert not all(np.array_equal(a, arrays(tmp_path, 4)[name]) for name, a in arrays(tmp_path, 2).items())


def test_stopped_among_skipped_steps_it_ends_as_if_it_had_not_been(resolve, tmp_path, poison, stop_after):
    """The stop saves what the step before them left, and the count goes on."""
    poison(3, 4, 5)
    config = resolve(guard__max_skipped="3", log__every_steps="10")
    with pytest.raises(NumericalError, match=r"^3 steps, one after the other, left the weights .*: loss is nan, .*\(step 5\)"):
        pretrain.pretrain(config, str(tmp_path / "whole"), {})
    assert checkpoint.whole_steps(tmp_path / "whole" / "checkpoints") == []

    undo = stop_after(3)
    assert pretrain.pretrain(config, str(tmp_path / "parts"), {}).position.step == 4
    undo()
    assert checkpoint.meta(tmp_path / "parts" / "checkpoints" / "4")["skipped"] == 2
    with pytest.raises(NumericalError, match=r"\(step 5\)"):
        pretrain.pretrain(config, str(tmp_path / "parts"), {})
    told = [[(line["step"], line["samples"], line.get("skipped")) for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    assert told[0] == told[1] == [(3, 12, True), (4, 16, True), (5, 20, True)], "told of whatever the log's interval"


def test_resumed_behind_a_skipped_step_it_is_the_same_run(resolve, tmp_path, poison, stop_after):
    poison(2)
    pretrain.pretrain(resolve(), str(tmp_path / "whole"), {})
    undo = stop_after(1)
    assert pretrain.pretrain(resolve(), str(tmp_path / "parts"), {}).position.step == 2
    undo()
    pretrain.pretrain(resolve(), str(tmp_path / "parts"), {})
    require_same(arrays(tmp_path / "whole", 6), arrays(tmp_path / "parts", 6))
    assert [line["loss"] for line in lines(tmp_path / "whole")] == [line["loss"] for line in lines(tmp_path / "parts")]


def test_the_limit_is_on_the_norm_before_clipping(resolve, tmp_path):
    pretrain.pretrain(resolve(guard__max_grad_norm="1e-9"), str(tmp_path / "still"), {})
    first, second, *_ = (line["grad_norm"] for line in lines(tmp_path / "still"))
    assert first > second, "the first step is to be skipped, and the second not"
    limit = (first + second) / 2
    pretrain.pretrain(resolve(guard__max_grad_norm=repr(limit), optimizer__clip_norm="1e-3"), str(tmp_path / "limited"), {})
    told = [(line["grad_norm"] > limit, line.get("skipped", False)) for line in lines(tmp_path / "limited")]
    assert set(told) == {(True, True), (False, False)}


def test_a_last_step_that_is_skipped_does_not_lose_the_run(resolve, tmp_path, poison):
    """The held-out loss shows that its weights are good."""
    poison(6)
    result = pretrain.pretrain(resolve(), str(tmp_path), {})
    assert result.finished and np.isfinite(next(iter(result.heldout.values())).loss)
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == [3, 6]
