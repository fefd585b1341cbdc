"""What is predicted is what the program says: every collective of a lowered step, as multisets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from meshes import MODELS, config_of, without_ring

from mtnlg import spmd
from mtnlg.core import collectives as house
from mtnlg.core import schema
from mtnlg.model import blockwise, transformer
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import zero
from mtnlg.plan import collectives, lowered
from mtnlg.plan.collectives import Collective
from mtnlg.train import step as steps

BF16 = {"compute_dtype": "bfloat16", "reduce_dtype": "bfloat16"}
RAREST = {"recompute": "full", "microbatch_size": 2, **BF16}
FAST = (
    ("mtnlg", {"data": 2, "tensor": 2, "zero": 0}, {}),
    ("bloom", {"tensor": 8, "zero": 1}, {"compute_dtype": "bfloat16"}),
    ("mtnlg", {"replica": 2, "data": 2, "zero": 2}, {"microbatch_size": 2, "reduce_dtype": "bfloat16"}),
    ("neox", {"replica": 2, "tensor": 4, "zero": 1}, {"recompute": "full"}),
    ("mtnlg", {"data": 2, "tensor": 2, "zero": 2, "sequence_parallel": True}, {"microbatch_size": 4, "recompute": "selective"}),
    ("llama", {"data": 2, "tensor": 4, "zero": 3}, {"recompute": "selective"}),
    ("bloom", {"replica": 2, "data": 2, "tensor": 2, "zero": 1, "sequence_parallel": True}, {"unroll_layers": True}),
    ("mtnlg", {"replica": 2, "data": 2, "tensor": 2, "zero": 3, "sequence_parallel": True}, RAREST),
    ("llama", {"data": 2, "tensor": 4, "zero": 3, "sequence_parallel": True}, {"recompute": "none", "compute_dtype": "bfloat16"}),
    ("bloom", {"data": 2, "context": 4, "zero": 1}, {"recompute": "full", "compute_dtype": "bfloat16"}),
    ("neox", {"replica": 2, "context": 2, "tensor": 2, "zero": 0}, {"recompute": "selective", "microbatch_size": 2}),
    ("llama", {"data": 2, "context": 2, "tensor": 4, "zero": 3, "sequence_parallel": True}, {"recompute": "none"}),
)  # fmt: skip


def every_case():
    """Each (replica, data, context, tensor) of up to 8 devices with all that changes something on it; the rest in turn."""
    turns = itertools.cycle(itertools.product(MODELS, ("none", "selective", "full"), (1, 2), ({}, BF16, {"compute_dtype": "bfloat16"})))
    for replica, data, context, tensor in itertools.product((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 8)):
        if not 1 < replica * data * context * tensor <= 8:
            continue
        for level in range(4) if data > 1 and context == 1 else (1, 3):
            for parted in (False, True) if tensor > 1 else (False,):
                model, recompute, microbatches, dtypes = next(itertools.islice(turns, 6, None))  # seven on: every pair comes up
                mesh = {"replica": replica, "data": data, "context": context, "tensor": tensor, "zero": level, "sequence_parallel": parted}
                yield model, mesh, {"recompute": recompute, "microbatch_size": 16 // (replica * data * microbatches), **dtypes}


def name_of(case) -> str:
    model, mesh, train = case
    return "-".join([model, *(f"{name}{int(value)}" for name, value in mesh.items()), *map(str, train.values())])


def both(model, mesh, train):
    """(predicted, counted in the lowered step)."""
    config = config_of(model, mesh, **{"compute_dtype": "float32", "param_dtype": "float32"} | train)
    made = meshes.make(config.mesh)
    found = lowered.count(steps.lower(config, made), made, config.train.batch_size // config.microbatch_rows)
    return collectives.totals(collectives.predict(config)), found


@pytest.mark.parametrize("case", FAST, ids=name_of)
def test_the_lowered_step_has_exactly_what_is_predicted(case):
    predicted, found = both(*case)
    assert found == predicted
    assert found.total() > 10


@pytest.mark.slow
@pytest.mark.parametrize("case", list(every_case()), ids=name_of)
def test_so_it_is_on_every_mesh(case):
    predicted, found = both(*case)
    assert found == predicted


def test_in_float64_everything_is_float64():
    with jax.enable_x64(True):
        predicted, found = both("llama", {"data": 2, "tensor": 2}, {"compute_dtype": "float64", "param_dtype": "float64"})
    assert found == predicted
    assert {one.dtype for one in found} == {"float64"}


def test_one_device_has_none():
    assert both("llama", {"zero": 3}, {}) == ({}, {})


@pytest.mark.parametrize("train", [{}, {"recompute": "selective"}, {"recompute": "full", "compute_dtype": "bfloat16"}], ids=str)
def test_gathered_keys_as_stages_need_them(monkeypatch, train):
    """Without the stages, which have no program yet."""
    mesh = {"data": 2, "context": 4, "zero": 1}
    monkeypatch.setattr(spmd, "context_shard", without_ring)
    monkeypatch.setattr(collectives._Step, "rings", False)
    predicted, found = both("llama", mesh, train)
    assert found == predicted
    assert {blockwise.ALL_KEYS, f"{blockwise.ALL_KEYS}, backward"} < {one.why for one in found}


def difference(predicted, found) -> dict[str, int]:
    """{why: how many more the program has}."""
    return {one.why: found[one] - predicted[one] for one in {**predicted, **found} if found[one] != predicted[one]}


def test_weights_that_are_kept_instead_of_gathered_again_are_noticed(monkeypatch):
    """Negative control, and a fault that this comparison found: ZeRO 3 that saves every whole weight for the backward."""
    monkeypatch.setattr(transformer, "saved", lambda *_, **__: True)
    assert difference(*both("bloom", {"data": 2, "zero": 3}, {})).keys() == {"weights, gathered for one block"}


def test_a_sum_that_is_missing_is_noticed(monkeypatch):
    monkeypatch.setattr(zero, "sum_rest", lambda grads, *_: grads)
    found = difference(*both("bloom", {"data": 2, "zero": 2}, {}))
    assert found.keys() == {"gradients, over samples"} and max(found.values()) < 0


def test_loops_calls_and_branches_are_counted():
    """One sum before everything, one in a loop of 3 in a loop of 5, a permute and a gather in a called function, a sum in a loop of a
    traced bound."""
    mesh = meshes.make(schema.Mesh(data=2, tensor=2))

    def reduced(x, why):
        return house.all_reduce(x, ("data", "tensor"), why)

    @jax.jit
    def called(x):
        x = house.permute(x, "data", "round")
        return house.all_gather(x, "data", 0, "called")[: x.shape[0]]

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    def program(x, number):
        x = reduced(x, "before")
        inner = lambda x, _: (house.reduce_scatter(x, "tensor", 0, "inner").repeat(2, 0), None)  # noqa: E731
        outer = lambda x, _: (called(jax.lax.scan(inner, x, length=3)[0]), None)  # noqa: E731
        x, _ = jax.lax.scan(outer, x, length=5)
        x = jax.lax.fori_loop(0, number, lambda _, x: reduced(x, "traced"), x)
        return jax.lax.cond(number > 1, lambda x: house.all_max(x, "tensor", "branch"), lambda x: x, x)

    step = jax.jit(program).lower(jnp.zeros((4, 2), jnp.bfloat16), 1)
    both_axes = ("data", "tensor")
    assert lowered.count(step, mesh, num_microbatches=7) == {
        Collective("all_reduce", both_axes, "before", "bfloat16", 8): 1,
        Collective("reduce_scatter", ("tensor",), "inner", "bfloat16", 8): 15,
        Collective("collective_permute", ("data",), "round", "bfloat16", 8): 5,
        Collective("all_gather", ("data",), "called", "bfloat16", 8): 5,
        Collective("all_reduce", both_axes, "traced", "bfloat16", 8): 7,
        Collective("all_reduce", ("tensor",), "branch", "bfloat16", 8): 1,
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_axes_are_known_by_their_groups(number):
    degrees = {"replica": 2, "pipe": 1, "data": 3, "context": 1, "tensor": 4}
    for axes in itertools.combinations(("replica", "data", "tensor"), number):
        groups = sorted(map(sorted, lowered.groups_of(axes, degrees)))
        assert lowered.axes_of(groups, degrees) == axes
        halves = [part for group in groups for part in (group[:1], group[1:])]
        assert lowered.axes_of(halves, degrees) == lowered.NO_AXES


def test_rings_are_the_cycles_of_a_permutation():
    assert lowered.cycles([[0, 2], [1, 3], [2, 4], [3, 1], [4, 0]]) == [[0, 2, 4], [1, 3]]


def test_groups_are_those_of_neighbours_in_the_mesh():
    degrees = {"replica": 2, "data": 2, "tensor": 2}
    assert lowered.groups_of(("tensor",), degrees) == {frozenset(g) for g in ((0, 1), (2, 3), (4, 5), (6, 7))}
    assert lowered.groups_of(("replica", "tensor"), degrees) == {frozenset(g) for g in ((0, 1, 4, 5), (2, 3, 6, 7))}


@pytest.mark.parametrize(
    "name",
    [
        "jit(step)/shard_map/while/body/jvp(a, of b)/all_gather",
        "transpose(jvp(a, of b))/all_gather",
        "Block/mlp/down/a, of b/psum",
        "a, of b/psum",
    ],
)
def test_why_is_the_innermost_scope(name):
    assert lowered.why(name) == "a, of b"
