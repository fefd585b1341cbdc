"""float16: the scale of its loss follows Megatron-LM's rules, is found by a run on its own, and is part of what is saved."""

import random

import jax
import numpy as np
import pytest
from runs import arrays, losses, require_same

from mtnlg import checkpoint
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError, DataError, NumericalError
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import run as pretrain
from mtnlg.run import metrics
from mtnlg.train import loss_scale
from mtnlg.train import state as states
from mtnlg.train import step as steps

SCALE = "optimizer/3/scale"
HALF = {"train__compute_dtype": "float16"}
HIGH = HALF | {"loss_scale__initial": repr(2.0**40), "train__num_steps": "60", "optimizer__schedule": "constant"}


class Expected:
    """The rules, as Megatron-LM's DynamicGradScaler writes them down."""

    def __init__(self, config):
        self.config, self.scale, self.good_steps, self.hysteresis = config, config.initial, 0, config.hysteresis

    def update(self, overflows):
        if overflows:
            self.good_steps, self.hysteresis = 0, self.hysteresis - 1
            if self.hysteresis <= 0:
                self.scale = max(self.scale * 0.5, self.config.floor)
        else:
            self.good_steps += 1
            if self.good_steps == self.config.window:
                self.good_steps, self.hysteresis, self.scale = 0, self.config.hysteresis, self.scale * 2


@pytest.mark.parametrize("seed", range(4))
def test_it_moves_as_megatron_lms(seed):
    draw = random.Random(seed)
    config = schema.LossScale(initial=2.0**6, window=draw.randint(1, 5), hysteresis=draw.randint(1, 3), floor=4.0)
    update = jax.jit(lambda state, overflows: loss_scale.update(config, state, overflows))
    expected, state, seen = Expected(config), loss_scale.initial(config), set()
    for number in range(300):
        overflows = draw.random() < (0.9 if number // 50 % 2 else 0.3)
        expected.update(overflows)
        state = update(state, overflows)
        assert (state.scale, state.good_steps) == (expected.scale, expected.good_steps)
        assert state.hysteresis == max(expected.hysteresis, 0)
        seen.add(float(state.scale))
    assert min(seen) == 4 and len(seen) > 2, "the walk has reached the floor and left it"


@pytest.fixture(scope="module")
def found(resolve, tmp_path_factory):
    """A run that begins with a scale far too large."""
    folder = tmp_path_factory.mktemp("found")
    pretrain.pretrain(resolve(**HIGH), str(folder), {})
    return folder


def test_a_run_finds_its_scale_and_learns(found):
    lines = [line for line in metrics.read(found / "metrics.jsonl") if "loss" in line]
    overflown = [line.get("skipped", False) for line in lines]
    falling = overflown.index(False)
    assert falling > 10, "more steps overflow one after the other than guard.max_skipped allows"
    assert sum(overflown[falling:]) < 5, "once it is found few other steps are lost"
    assert [line["loss_scale"] for line in lines[:4]] == [2.0**40, 2.0**40, 2.0**39, 2.0**38]
    assert arrays(found, 60)[SCALE] == 2.0 ** (40 - sum(overflown) + 1), "of two overflows, the first is let pass"
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]


def test_stopped_among_overflows_it_is_the_same_run(found, resolve, tmp_path):
    pretrain.pretrain(resolve(**HIGH | {"train__num_steps": "5"}), str(tmp_path), {})
    assert arrays(tmp_path, 5)[SCALE] == 2.0**36
    pretrain.pretrain(resolve(**HIGH | {"train__num_steps": "43"}), str(tmp_path), {})
    pretrain.pretrain(resolve(**HIGH), str(tmp_path), {})
    require_same(arrays(found, 60), arrays(tmp_path, 60))
    assert losses(found)[:5] == losses(tmp_path)[:5]


def test_it_computes_what_float32_does(resolve, tmp_path):
    """And with another scale the very same numbers: a power of two, where nothing leaves float16's range."""
    runs = {"float32": {}, "float16": HALF | {"loss_scale__initial": "1024"}, "other": HALF | {"loss_scale__initial": "2048"}}
    for name, changes in runs.items():
        pretrain.pretrain(resolve(**changes), str(tmp_path / name), {})
    wide, half, other = (np.array(losses(tmp_path / name)) for name in runs)
    np.testing.assert_allclose(half, wide, rtol=5e-3)
    np.testing.assert_allclose(other, half, rtol=1e-4)
    assert not np.array_equal(half, wide)


def test_at_the_floor_an_overflow_ends_the_run(resolve, tmp_path):
    high = repr(2.0**40)
    with pytest.raises(NumericalError, match=r"loss_scale.floor=1.09951e\+12 \(step 1\)") as raised:
        pretrain.pretrain(resolve(**HALF, loss_scale__initial=high, loss_scale__floor=high), str(tmp_path), {})
    assert raised.value.exit_code == 16
    assert checkpoint.whole_steps(tmp_path / "checkpoints") == []


@pytest.mark.parametrize("mesh", [{}, {"mesh__data": "2", "mesh__tensor": "2", "mesh__zero": "3"}])
def test_an_overflow_moves_the_scale_alone(resolve, mesh):
    """And what is no number for another reason moves nothing: a smaller scale would not mend it."""
    config = resolve(**HALF, **mesh, loss_scale__initial=repr(2.0**40), loss_scale__hysteresis="1")
    made = meshes.make(config.mesh)
    state, program = states.make(config, made), steps.make(config, made)
    before = jax.device_get(state)
    shape = (1, 4, config.model.seq_len)
    fields = {name: np.ones(shape, np.int32) for name in ("tokens", "targets", "segment_ids")}
    fields |= {"positions": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)}
    for weight, moves in ((np.nan, False), (1, True)):
        weights = {"weights": np.full(shape, weight, np.float32)}
        state, told = program(state, meshes.put_rows(made, fields | weights, 4), 1, 0, 0.1, False)
        assert told["skipped"] and told["overflows"] == moves and told["loss_scale"] == 2.0**40
        after = jax.device_get(state)
        jax.tree.map(np.testing.assert_array_equal, (after.params, after.optimizer[:-1]), (before.params, before.optimizer[:-1]))
        assert after.optimizer[-1] == ((2.0**39, 0, 0) if moves else before.optimizer[-1])
    assert told["target_tokens"] == 64


def test_another_dtype_has_no_scale(resolve, found):
    config = resolve()
    assert len(states.abstract(config, meshes.make(config.mesh)).optimizer) == 3
    with pytest.raises(ConfigError, match=r"train\.compute_dtype: float16 in the checkpoint, float32 here"):
        pretrain.pretrain(resolve(train__num_steps="61"), str(found), {})
    meant = "train.compute_dtype,optimizer.schedule,loss_scale"
    with pytest.raises(DataError, match=r"3/scale: stored \(\) float32, wanted nothing"):
        pretrain.pretrain(resolve(train__num_steps="61", resume__allow=meant), str(found), {})
    with pytest.raises(ConfigError, match="loss_scale.floor=2.0 scales nothing without train.compute_dtype=float16"):
        resolve(loss_scale__floor="2")
