"""What is predicted is what the program says: every collective of a lowered step, as multisets."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from meshes import MODELS, config_of

from mtnlg import pipeline
from mtnlg.core import collectives as house
from mtnlg.core import schema
from mtnlg.model import transformer
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import zero
from mtnlg.plan import collectives, lowered, trips
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

PARTED = {"sequence_parallel": True}
STAGES = (
    ("mtnlg", {"pipe": 2, "data": 2, "tensor": 2, "zero": 2, **PARTED}, {"num_layers": 3, "loss_chunk_tokens": 7}),
    ("llama", {"pipe": 2, "data": 2, "tensor": 4, "zero": 2}, {"pipeline": {"schedule": "zb_v"}, "num_layers": 4, "recompute": "full"}),
    ("neox", {"pipe": 4, "data": 2, "zero": 0}, {"pipeline": {"schedule": "interleaved"}, "num_layers": 9, "recompute": "selective"}),
    ("bloom", {"pipe": 2, "context": 2, "tensor": 2, "zero": 1, **PARTED}, {"pipeline": {"schedule": "zb_v"}, "num_layers": 5, **RAREST}),
    ("mtnlg", {"pipe": 2, "replica": 2, "data": 2, "zero": 1}, {"pipeline": {"layers_per_stage": (2, 0)}}),
    ("bloom", {"pipe": 4, "context": 4}, {"pipeline": {"schedule": "zero_bubble"}, "num_layers": 5}),
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


def every_case_of_stages():
    """Each (pipe, replica or data, context, tensor) of up to 8 devices, as in `every_case`; schedules in turn."""
    turns = itertools.cycle(itertools.product(MODELS, ("none", "selective", "full"), schema.SCHEDULES, (BF16, {})))
    for pipe, replica, data, context, tensor in itertools.product((2, 4), (1, 2), (1, 2), (1, 2), (1, 2, 4)):
        if pipe * replica * data * context * tensor > 8:
            continue
        for level in range(3) if data > 1 else (1,):
            for parted in (False, True) if tensor > 1 else (False,):
                model, recompute, schedule, dtypes = next(itertools.islice(turns, 12, None))  # thirteen on: every pair comes up
                mesh = {"pipe": pipe, "replica": replica, "data": data, "context": context, "tensor": tensor, "zero": level}
                train = {"recompute": recompute, "num_layers": 9, "pipeline": {"schedule": schedule}, **dtypes}
                yield model, mesh | {"sequence_parallel": parted}, train


def name_of(case) -> str:
    model, mesh, train = case
    return "-".join([model, *(f"{name}{int(value)}" for name, value in mesh.items()), *map(str, train.values())])


def both(model, mesh, train):
    """(predicted, counted in the lowered step)."""
    stages = {"microbatch_size": 2} if "pipe" in mesh else {}
    config = config_of(model, mesh, **{"compute_dtype": "float32", "param_dtype": "float32"} | stages | train)
    made = meshes.make(config.mesh)
    return collectives.totals(collectives.predict(config)), lowered.count(steps.lower(config, made), made, trips.of(config))


@pytest.mark.parametrize("case", (*FAST, *STAGES), ids=name_of)
def test_the_lowered_step_has_exactly_what_is_predicted(case):
    predicted, found = both(*case)
    assert found == predicted
    assert found.total() > 10


@pytest.mark.slow
@pytest.mark.parametrize("case", [*every_case(), *every_case_of_stages()], ids=name_of)
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


def test_a_message_that_nobody_sends_is_noticed(monkeypatch):
    monkeypatch.setattr(house, "permute", lambda x, *_: x)
    found = difference(*both(*STAGES[2]))
    assert found.keys() == set(pipeline.MESSAGES) and max(found.values()) < 0


def test_what_every_tick_does_though_one_stage_needs_it_is_noticed(monkeypatch):
    """Negative control: the head not in a loop of its own, whose turns are known."""
    once_if = pipeline._once_if
    always = lambda name, *rest: once_if(name, *rest) if name != pipeline.HEAD else rest[1](rest[2])  # noqa: E731
    monkeypatch.setattr(pipeline, "_once_if", always)
    found = difference(*both("bloom", {"pipe": 2, "tensor": 2}, {}))
    assert found.keys() == {
        "head, into the rows of the vocabulary, backward",
        "largest logit of the whole vocabulary",
        "sum of exponentials, and the target's logit, over the vocabulary",
    }
    assert min(found.values()) > 0


def test_loops_calls_and_branches_are_counted():
    """One sum before everything, one in a loop of 3 in a loop of 5, a permute and a gather in a called function, sums in a loop of a
    traced bound, in a named loop in it, and in branches; one whose sum nobody reads."""
    mesh = meshes.make(schema.Mesh(data=2, tensor=2))

    def reduced(x, why):
        return house.all_reduce(x, ("data", "tensor"), why)

    @jax.jit
    def called(x):
        x = house.permute(x, "data", 1, "round")
        return house.all_gather(x, "data", 0, "called")[: x.shape[0]]

    def named(x, number):
        with jax.named_scope("inside"):
            return jax.lax.fori_loop(0, number % 2, lambda _, x: reduced(x, "traced, inside"), x)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    def program(x, number):
        x = reduced(x, "before")
        inner = lambda x, _: (house.reduce_scatter(x, "tensor", 0, "inner").repeat(2, 0), None)  # noqa: E731
        outer = lambda x, _: (called(jax.lax.scan(inner, x, length=3)[0]), None)  # noqa: E731
        x, _ = jax.lax.scan(outer, x, length=5)
        with jax.named_scope("outer"):
            x = jax.lax.fori_loop(0, number, lambda _, x: named(reduced(x, "traced"), number), x)
        reduced(x, "unread") + 1
        with jax.named_scope("known"):
            x = jax.lax.cond(number > 2, lambda x: house.all_max(x, "tensor", "known branch"), lambda x: x, x)
        return jax.lax.cond(number > 1, lambda x: house.all_max(x, "tensor", "branch"), lambda x: x, x)

    step = jax.jit(program).lower(jnp.zeros((4, 2), jnp.bfloat16), 1)
    both_axes = ("data", "tensor")
    assert lowered.count(step, mesh, {"outer": 7, "inside": 2, "known": 3}) == {
        Collective("all_reduce", both_axes, "before", "bfloat16", 8): 1,
        Collective("reduce_scatter", ("tensor",), "inner", "bfloat16", 8): 15,
        Collective("collective_permute", ("data",), "round", "bfloat16", 8): 5,
        Collective("all_gather", ("data",), "called", "bfloat16", 8): 5,
        Collective("all_reduce", both_axes, "traced", "bfloat16", 8): 7,
        Collective("all_reduce", both_axes, "traced, inside", "bfloat16", 8): 2,
        Collective("all_reduce", ("tensor",), "known branch", "bfloat16", 8): 3,
        Collective("all_reduce", ("tensor",), "branch", "bfloat16", 8): 1,
    }
    with pytest.raises(KeyError, match="inside"):
        lowered.count(step, mesh, {"outer": 7, "known": 3})


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
