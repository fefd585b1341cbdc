"""Specs and bytes of every parameter; each fault of the tables is named with the row to change."""

import dataclasses
import re

import jax
import pytest
from jax.sharding import PartitionSpec as P
from meshes import MODELS, config_of

from mtnlg.core import config as configs
from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.core.tree import by_path
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import specs
from mtnlg.plan import sharding
from mtnlg.train import state as states

CONFIG = schema.Config(model=MODELS["mtnlg"], mesh=schema.Mesh(data=2, tensor=2))


def on(config=CONFIG, **mesh) -> schema.Config:
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **mesh))


STAGES = {"schedule": "zb_v", "layers_per_stage": (1, 2, 0, 0)}


@pytest.mark.parametrize("pipe", [1, 2])
@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("model", ["mtnlg", "llama"])
def test_bytes_are_those_of_the_real_state(model, zero, pipe):
    """Each device's shard of parameters and of Adam's moments, as JAX lays them on a mesh; stages of uneven chunks are filled up."""
    config = config_of(model, {"pipe": pipe, "data": 2, "tensor": 4, "zero": zero}, 3, STAGES, param_dtype="float32")
    state = states.abstract(config, meshes.make(config.mesh))

    def num_bytes(leaf):
        return leaf.dtype.itemsize * jax.numpy.prod(jax.numpy.array(leaf.sharding.shard_shape(leaf.shape)), dtype=int)

    adam = state.optimizer[1]
    moments = jax.tree.map(lambda mu, nu: num_bytes(mu) + num_bytes(nu), adam.mu, adam.nu)
    rows = sharding.rows(config)
    assert {row.path: row.param_bytes for row in rows} == {path: num_bytes(leaf) for path, leaf in by_path(state.params).items()}
    assert {row.path: row.optimizer_bytes for row in rows} == by_path(moments)


def test_gradients_are_whole_while_zero_1_accumulates():
    rows = {zero: sharding.rows(on(zero=zero)) for zero in range(4)}
    kernels = {zero: next(row for row in of if row.path == "blocks/mlp/up/kernel") for zero, of in rows.items()}
    assert {zero: row.gradient_bytes // kernels[2].param_bytes for zero, row in kernels.items()} == {0: 2, 1: 2, 2: 1, 3: 1}
    assert {zero: row.param_bytes // kernels[2].param_bytes for zero, row in kernels.items()} == {0: 2, 1: 1, 2: 1, 3: 1}


def test_what_a_step_holds_beside():
    """Bytes of one kernel of 2 x 16 x 32 in bfloat16, halved by tensor: a copy of all layers, with ZeRO 3 of one, or none."""
    narrow = dataclasses.replace(CONFIG, train=schema.Train(compute_dtype="bfloat16"))

    def up(config):
        return next(row for row in sharding.rows(config) if row.path == "blocks/mlp/up/kernel")

    whole = 2 * 16 * 32 // 2
    assert [up(on(narrow, zero=zero)).copy_bytes for zero in range(4)] == [2 * whole, 2 * whole, 2 * whole, 2 * whole // 2]
    assert [up(on(narrow, zero=zero)).microbatch_bytes for zero in range(4)] == [2 * whole, 2 * whole, 2 * whole, 4 * whole // 2]
    assert up(on(zero=0)).copy_bytes == 0 and up(on(zero=1)).copy_bytes == 4 * whole


def test_what_a_stage_holds_beside():
    """One block's gradients at a time; embedding and its gradient whole, which are stored in parts on all stages."""
    narrow = schema.Train(compute_dtype="bfloat16", microbatch_size=2, batch_size=16)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, num_layers=4), train=narrow)
    for zero, shares in ((0, 1), (1, 1), (2, 2)):
        rows = {row.path: row for row in sharding.rows(on(config, pipe=2, zero=zero))}
        up, tokens = rows["blocks/mlp/up/kernel"], rows["embedding/tokens"]
        kernel, table = 16 * 32 // 2, 32 * 16 // 2
        assert (up.gradient_bytes, up.copy_bytes, up.microbatch_bytes) == (4 * 2 * kernel // shares, 2 * 2 * kernel, 4 * kernel)
        assert tokens.param_bytes == 4 * table // 2 // (2 if zero else 1)
        assert (tokens.gradient_bytes, tokens.copy_bytes, tokens.microbatch_bytes) == (4 * table // shares, 4 * table, 4 * table)


def test_the_largest_model_without_any_device():
    """530 B parameters over 2240 devices, by hand: 3 of 105 layers, an eighth of each kernel, of that an eighth in shards.

    Of the vocabulary each stage stores a part, but gradients of all of it are added up where it is computed with.
    """
    rows = {row.path: row for row in sharding.rows(configs.resolve(["--config=configs/mtnlg_530b.py"]))}
    width, layers = 20480, 3
    kernels = {name: row.param_bytes for name, row in rows.items() if name.endswith("/kernel")}
    assert sum(kernels.values()) == 4 * layers * 12 * width * width // 64
    assert rows["blocks/mlp/up/kernel"].gradient_bytes == 4 * layers * 4 * width * width // 8
    vocabulary = 51200 + 40  # a multiple of 8 x 35
    assert rows["embedding/tokens"].shape == (vocabulary, width)
    assert rows["embedding/tokens"].optimizer_bytes == 2 * 4 * vocabulary * width // 64 // 35
    assert rows["embedding/tokens"].gradient_bytes == rows["embedding/tokens"].copy_bytes == 4 * vocabulary * width // 8
    assert rows["embedding/positions"].param_bytes == 4 * 2048 * width // 8
    assert rows["blocks/mlp_norm/scale"].param_bytes == 4 * layers * width


def test_every_shipped_config_has_tables_that_fit():
    for size in ("1.7b", "7.5b", "530b", "1t"):
        assert sharding.problems(configs.resolve([f"--config=configs/sc21.py:{size}"])) == []


def changed(monkeypatch, pattern: str, spec: P | None, table: str = "STORAGE") -> None:
    """One row of a table with another spec; None: without the row."""
    rows = getattr(specs, table)
    assert pattern in dict(rows)
    monkeypatch.setattr(specs, table, tuple((p, spec if p == pattern else s) for p, s in rows if p != pattern or spec is not None))


def faults(config=CONFIG) -> list[str]:
    """The lines of the error that a user sees."""
    with pytest.raises(ConfigError, match="^the sharding tables do not fit this config:\n") as caught:
        sharding.rows(config)
    assert caught.value.exit_code == 2
    return [line.removeprefix("  - ") for line in str(caught.value).splitlines() if line.startswith("  - ")]


def named_row(fault: str) -> str:
    """The line of the tables' source that a fault names first."""
    number = re.match(r"mtnlg/parallel/specs\.py:(\d+) ", fault)[1]
    with open(specs.__file__) as file:
        return file.readlines()[int(number) - 1].strip()


DOWN = "blocks/mlp/down/kernel"
OF_DOWN = f"{DOWN} [2, 32, 16]"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (P("pipe", "tensor", None), f"[pipe, tensor, -] of {OF_DOWN} leaves out data: all 2 devices along it would hold the same"),
        (P("pipe", "data", "data"), f"[pipe, data, data] of {OF_DOWN} uses data 2 times"),
        (P("pipe", "tensor", "dat"), f"[pipe, tensor, dat] of {OF_DOWN} names dat, which is no axis of the mesh"),
        (P("pipe", "tensor", "data", None), f"[pipe, tensor, data, -] of {OF_DOWN} has 4 entries for 3 dims"),
        (P("pipe", ("tensor", "replica"), "data"), f"[pipe, tensor+replica, data] of {OF_DOWN} shards dim 1 of 32, which does not divide "),
    ],
)
def test_a_wrong_spec_is_named_with_its_row(monkeypatch, spec, expected):
    changed(monkeypatch, DOWN, spec)
    found = faults(on(replica=3))
    assert found[0].partition(": ")[2].startswith(expected)
    assert named_row(found[0]) == f'(r"{DOWN}", P("pipe", "tensor", "data")),'


def test_a_matrix_that_leaves_out_tensor_is_named(monkeypatch):
    """In both tables alike, which is a fault of the row in STORAGE."""
    changed(monkeypatch, DOWN, P("pipe", None, "data"))
    changed(monkeypatch, DOWN, P("pipe"), "COMPUTE")
    (found,) = faults()
    assert found.endswith(f"[pipe, -, data] of {OF_DOWN} leaves out tensor: all 2 devices along it would hold the same")
    assert sharding.problems(on(tensor=1)) == []


def test_with_zero_0_nothing_lies_in_shards_along_data(monkeypatch):
    changed(monkeypatch, DOWN, P("pipe", "tensor", None))
    assert sharding.problems(on(zero=0)) == []
    assert sharding.problems(on(data=1)) == []


def test_a_parameter_without_a_row_is_named_with_the_table(monkeypatch):
    changed(monkeypatch, DOWN, None)
    (found,) = faults()
    assert found.endswith(f"(STORAGE): {DOWN} matches 0 rows of STORAGE, not one")
    assert named_row(found) == "STORAGE = ("


def test_a_parameter_with_two_rows_names_both(monkeypatch):
    monkeypatch.setattr(specs, "STORAGE", (*specs.STORAGE, ("blocks/mlp/.*/kernel", P())))
    found = [line for line in faults() if "down" in line]
    assert len(found) == 1 and found[0].endswith(f"{DOWN} matches 2 rows of STORAGE, not one")
    assert named_row(found[0]).startswith(f'(r"{DOWN}"') and '"blocks/mlp/.*/kernel"' in found[0]


def test_tables_that_disagree_beyond_data_are_named(monkeypatch):
    changed(monkeypatch, DOWN, P("pipe", "data", "tensor"))
    (found,) = faults()
    assert found.endswith(f"{DOWN} is gathered along data only, so these may differ in data only")


@pytest.mark.parametrize(("table", "spec"), [("STORAGE", P("tensor", ("data", "pipe"))), ("COMPUTE", P(("tensor", "pipe"), None))])
def test_of_the_vocabulary_tables_may_differ_in_pipe_too(monkeypatch, table, spec):
    """But not the other way round, nor on another dim."""
    assert sharding.problems(on(pipe=2)) == []
    changed(monkeypatch, "embedding/tokens", spec, table)
    (found,) = faults(on(pipe=2))
    assert found.endswith("embedding/tokens is gathered along data and pipe only, so these may differ in data and pipe only")


def test_all_faults_come_at_once_and_shared_rows_once(monkeypatch):
    changed(monkeypatch, DOWN, P("pipe", "tensor", None))
    changed(monkeypatch, "head/kernel", P("data", "pipe"))
    for table in ("STORAGE", "COMPUTE"):
        changed(monkeypatch, "final_norm/(scale|bias)", P("context", "context"), table)
    found = faults(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, tie_embeddings=False)))
    about = [line.split(" of ")[1].split(" [")[0] for line in found if " of " in line]
    assert about == [DOWN, "final_norm/bias", "final_norm/scale", "head/kernel"]


@pytest.mark.parametrize("path", [DOWN, "blocks/(attention/output|mlp/down)/bias"])
def test_blocks_that_all_stages_would_hold_are_named(monkeypatch, path):
    for table in ("STORAGE", "COMPUTE"):
        changed(monkeypatch, path, P(None, *dict(getattr(specs, table))[path][1:]), table)
    found = faults(on(pipe=2))
    assert found and all(line.endswith("leaves out pipe: all 2 devices along it would hold the same") for line in found)


@pytest.mark.parametrize(("path", "axis"), [(path, axis) for path, axis, *_ in sharding.COPIED])
def test_a_copy_that_is_meant_is_named_by_the_table_only(monkeypatch, path, axis):
    """Without its row in COPIED each of them is a fault; with more heads than shards a copied key/value kernel is one anyway."""
    config = schema.Config(model=dataclasses.replace(MODELS["mtnlg"], num_kv_heads=2), mesh=schema.Mesh(pipe=2, data=2, tensor=4))
    assert sharding.problems(config) == []
    monkeypatch.setattr(sharding, "COPIED", tuple(row for row in sharding.COPIED if row[:2] != (path, axis)))
    assert [f"{path} [" in line and f"leaves out {axis}:" in line for line in faults(config)] == [True]


def test_copied_key_value_heads_are_a_fault_where_they_could_be_parted(monkeypatch):
    changed(monkeypatch, "blocks/attention/key_value/kernel", P("pipe", "data", None, None, None))
    changed(monkeypatch, "blocks/attention/key_value/kernel", P("pipe"), "COMPUTE")
    assert "leaves out tensor" in faults()[0]
