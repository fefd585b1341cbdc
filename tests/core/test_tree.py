"""Paths of leaves, and the tables that name every parameter once."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from mtnlg.core import schema
from mtnlg.core.tree import by_path
from mtnlg.model import count
from mtnlg.parallel import specs
from mtnlg.train import optimizer

MODELS = {
    "mtnlg": schema.Model(),
    "llama": schema.Model(position="rope", norm="rmsnorm", activation="swiglu", num_kv_heads=2, tie_embeddings=False, qk_norm=True),
}


@pytest.mark.parametrize("table", [specs.STORAGE, specs.COMPUTE])
@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_matches_exactly_one_row_with_a_spec_of_its_rank(table, name):
    for path, leaf in by_path(count.abstract_params(MODELS[name])).items():
        assert len(specs.spec_of(table, path)) <= len(leaf.shape), path


def test_every_row_is_of_use():
    paths = [path for model in MODELS.values() for path in by_path(count.abstract_params(model))]
    for pattern, spec in specs.COMPUTE:
        assert any(specs.spec_of(((pattern, spec),), p) == spec for p in paths if _matches(pattern, p)), pattern


def _matches(pattern, path):
    try:
        specs.spec_of(((pattern, P()),), path)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("table", [(), specs.COMPUTE + ((r".*", P()),)])
def test_no_row_or_two_rows_are_an_error(table):
    with pytest.raises(ValueError, match="matches"):
        specs.spec_of(table, "blocks/mlp/up/kernel")


def test_decay_touches_matrices_only():
    paths = by_path(count.abstract_params(MODELS["llama"])) | by_path(count.abstract_params(MODELS["mtnlg"]))
    spared = {path for path in paths if not optimizer.decays(path)}
    assert spared == {path for path in paths if path.endswith(("/bias", "/scale"))}
    assert jax.tree.leaves(spared)
