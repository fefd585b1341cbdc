"""A step's loss and gradients, computed twice, are the same bits on a sound machine; where they are not, the run ends and saves nothing."""

import jax
import pytest
from flips import draw

from mtnlg import checkpoint
from mtnlg.core.errors import ReplayError
from mtnlg.pretrain import run as pretrain
from mtnlg.train import replay

MESHES = [
    {},
    {"mesh__data": "2", "mesh__tensor": "2", "mesh__zero": "2", "train__compute_dtype": "float16"},
    pytest.param({"mesh__pipe": "2", "mesh__data": "2", "train__microbatch_size": "1", "model__num_layers": "2"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_sound_machine_gives_the_same_twice(mesh, resolve, tmp_path, monkeypatch):
    tried, require_same = [], replay.require_same

    def counted(program, state, batch, position):
        tried.append(position.step + 1)
        require_same(program, state, batch, position)

    monkeypatch.setattr(replay, "require_same", counted)
    assert pretrain.pretrain(resolve(**mesh, guard__replay_every_steps="2"), str(tmp_path), {}).finished
    assert tried == [2, 4, 6]


def test_a_device_that_computes_otherwise_is_found(resolve, tmp_path, monkeypatch):
    """One bit of one device's weights is another in the second computation of step 5, and whole again afterwards."""
    calls, program = [], replay.program

    def faulty(config, mesh):
        made = program(config, mesh)

        def twice(state, *arguments):
            calls.append(arguments)
            if len(calls) == 4:
                params, *_ = draw(state.params, lambda path: path == "blocks/mlp/down/kernel", 1)
                state = state._replace(params=params)
            return made(state, *arguments)

        return twice

    monkeypatch.setattr(replay, "program", faulty)
    mesh = {"mesh__data": "2", "mesh__tensor": "2", "mesh__zero": "0"}
    told = r"computed twice is not the same: .* has the checksums [0-9a-f]{8} and [0-9a-f]{8}.*\(step 4, samples 12 to 15\)"
    with pytest.raises(ReplayError, match=told) as raised:
        pretrain.pretrain(resolve(**mesh, guard__replay_every_steps="2"), str(tmp_path), {})
    assert raised.value.exit_code == 17 and checkpoint.whole_steps(tmp_path / "checkpoints") == [3]
    assert len(calls) == 4 and jax.tree.leaves(calls)
