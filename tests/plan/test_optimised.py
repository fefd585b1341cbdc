"""What XLA makes of the collectives, and the third promise: outside `shard_map` it adds nothing but scalars."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import config_of

from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.plan import lowered, optimised, trips
from mtnlg.plan.collectives import Collective
from mtnlg.train import step as steps

DEGREES = {"replica": 2, "pipe": 1, "data": 2, "context": 1, "tensor": 2}


@functools.cache
def compiled(zero: int, sequence_parallel: bool = False, microbatch_size: int = 4, **train) -> tuple[Counter, Counter]:
    """(collectives of the lowered step, instructions of the compiled one) on two replicas of two by two devices."""
    mesh = {"replica": 2, "data": 2, "tensor": 2, "zero": zero, "sequence_parallel": sequence_parallel}
    config = config_of("llama", mesh, **{"compute_dtype": "float32", "param_dtype": "float32", "microbatch_size": microbatch_size} | train)
    return counted(config)


def counted(config: schema.Config) -> tuple[Counter, Counter]:
    made, turns = meshes.make(config.mesh), trips.of(config)
    step = steps.lower(config, made)
    return lowered.count(step, made, turns), optimised.count(step.compile().as_text(), dict(made.shape), turns)


def ours(instructions: Counter) -> Counter:
    """{collective of spmd.py: how often it runs}."""
    found = Counter()
    for instruction, times in instructions.items():
        for operand in instruction.operands:
            found[operand.collective] += times * operand.is_ours
    return +found


CASES = [(0, False), (1, True), (2, False), (3, True)]


@pytest.mark.parametrize(("zero", "sequence_parallel"), CASES)
def test_outside_shard_map_only_scalars_travel(zero, sequence_parallel):
    _, instructions = compiled(zero, sequence_parallel)
    assert optimised.strangers(instructions) == []
    added = [operand for instruction in instructions for operand in instruction.operands if not operand.is_ours]
    assert added, "norms and clipping need sums over shards, so without any nothing was looked at"
    assert {operand.collective.num_bytes for operand in added} == {4}


@pytest.mark.parametrize(("zero", "sequence_parallel"), CASES)
def test_xla_runs_what_was_asked_for(zero, sequence_parallel):
    """Merged, but each array of each collective with its axes, dtype, size and why."""
    asked, instructions = compiled(zero, sequence_parallel)
    assert ours(instructions) == asked
    lines = optimised.differences(asked, instructions)
    assert not any(" became " in line for line in lines)
    assert any(line.startswith("gradients, over samples: ") and line.endswith(" merged") for line in lines)
    assert lines[-1].startswith("added by XLA outside shard_map")


STAGES = [
    ("mtnlg", {"pipe": 4, "data": 2, "tensor": 2, "zero": 2, "sequence_parallel": True}, {"num_layers": 5}),
    pytest.param(
        "bloom", {"pipe": 4, "context": 2, "zero": 1}, {"num_layers": 9, "pipeline": {"schedule": "zb_v"}, "recompute": "full"},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "llama", {"pipe": 4, "data": 2, "tensor": 2, "zero": 0}, {"num_layers": 8, "pipeline": {"schedule": "interleaved"}},
        marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "mesh", "settings"), STAGES)
def test_so_it_is_with_stages(model, mesh, settings):
    """Nothing leaves the loop of the one stage that needs it for the loop over ticks, where all would do it."""
    dtypes = {"compute_dtype": "float32", "param_dtype": "float32"}
    asked, instructions = counted(config_of(model, mesh, microbatch_size=2, **dtypes, **settings))
    assert optimised.strangers(instructions) == []
    assert ours(instructions) == asked


def test_a_change_of_dtype_is_named():
    """A CPU has no sums in bfloat16. Six kernels, tokens and head, of each a half: 3,328 elements."""
    lines = optimised.differences(*compiled(1, reduce_dtype="bfloat16", compute_dtype="bfloat16"))
    (line,) = [line for line in lines if line.startswith("gradients, over samples, each device its shards")]
    assert line.endswith(
        ": 8 reduce_scatter of bfloat16 over data (6,656 bytes) became 8 reduce_scatter of float32 over data (13,312 bytes)"
    )


def program(body: str) -> Counter:
    """The instructions of a module with these lines as its entry."""
    text = "HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n" + "\n".join(f"  {line}" for line in body.splitlines()) + "\n}\n"
    return optimised.count(text, DEGREES, {})


def line(kind="all-reduce", result="f32[]", groups="{{0,1},{2,3},{4,5},{6,7}}", name="jit(step)/reduce_sum") -> str:
    return (
        f'%x.1 = {result} {kind}(%y), channel_id=1, replica_groups={groups}, to_apply=%add, metadata={{op_name="{name}" stack_frame_id=1}}'
    )


@pytest.mark.parametrize(
    ("result", "name", "is_wrong"),
    [
        ("f32[]", "jit(step)/reduce_sum", False),
        ("(f32[], f32[])", "jit(step)/reduce_sum", False),
        ("f32[1]{0}", "jit(step)/reduce_sum", True),
        ("(f32[], f32[2,3]{1,0})", "jit(step)/reduce_sum", True),
        ("f32[2,3]{1,0}", "jit(step)/shard_map/why/psum", False),
        ("(" + ", ".join(["f32[]"] * 1025) + ")", "jit(step)/reduce_sum", True),
        # Merged: one array of ours, one that is not.
        ("(f32[2,3]{1,0}, f32[])", "jit(step)/(shard_map/why/psum:reduce_sum)", False),
        ("(f32[], f32[2,3]{1,0})", "jit(step)/(shard_map/why/psum:reduce_sum)", True),
        ("(f32[], f32[2,3]{1,0}, f32[])", "jit(step)/(shard_map/why/psum:reduce_sum)", True),  # whose is the third?
        ("f32[2,3]{1,0}", "jit(shard_mapped)/reduce_sum", True),
    ],
)
def test_only_scalars_may_come_from_elsewhere(result, name, is_wrong):
    assert bool(optimised.strangers(program(line(result=result, name=name)))) == is_wrong


def test_a_real_program_that_gathers_a_matrix_is_noticed():
    """Negative control: the compiler moves data on its own when a sharded array is wanted whole."""
    mesh = meshes.make(schema.Mesh(data=2, tensor=4))
    everywhere = NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, P("tensor", None)))
    text = jax.jit(lambda x: x * 2, out_shardings=everywhere).lower(x).compile().as_text()
    (found,) = optimised.strangers(optimised.count(text, dict(mesh.shape), {}))
    assert "all_gather of rank 2" in found and "64 bytes outside shard_map" in found


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("{{0,2,4,6},{1,3,5,7}}", ("replica", "data")),
        ("{}", ("replica", "data", "tensor")),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", ("replica",)),
        ("[4,2]<=[2,2,2]T(0,2,1)", ("data",)),
        ("[1,8]<=[8]", ("replica", "data", "tensor")),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("data",)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("replica", "tensor")),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_1'}", ("data",)),
        ("mesh['axis_0'=1,'axis_1'=2,'axis_2'=1,'axis_3'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", ("tensor",)),
        ("{{0,3},{1,2},{4,7},{5,6}}", lowered.NO_AXES),
    ],
)
def test_groups_are_read_in_every_way_that_xla_writes_them(groups, axes):
    (instruction,) = program(line(groups=groups))
    assert instruction.operands[0].collective.axes == axes


def test_a_permute_is_read_by_its_pairs():
    text = line(kind="collective-permute", result="f32[2,3]{1,0}").replace(
        "replica_groups={{0,1},{2,3},{4,5},{6,7}}", "source_target_pairs={}"
    )
    pairs = "{{0,2},{2,0},{1,3},{3,1},{4,6},{6,4},{5,7},{7,5}}"
    (instruction,) = program(text.replace("source_target_pairs={}", f"source_target_pairs={pairs}"))
    collective = instruction.operands[0].collective
    assert (collective.kind, collective.axes, collective.num_elements) == ("collective_permute", ("data",), 6)


def test_what_cannot_be_read_is_not_passed_over():
    with pytest.raises(NotImplementedError, match="groups of devices in a way that is new"):
        program(line(groups="somehow"))
    with pytest.raises(NotImplementedError, match="asynchronous"):
        program(line(kind="all-reduce-start"))


@pytest.mark.parametrize(("kind", "elements"), [("all-reduce", 24), ("all-gather", 12), ("reduce-scatter", 48)])
def test_an_operand_is_what_goes_in(kind, elements):
    (instruction,) = program(line(kind=kind, result="bf16[2,3,4]{2,1,0}", name="jit(f)/shard_map/target\\'s why/psum"))
    assert instruction.operands[0].collective == Collective(kind.replace("-", "_"), ("tensor",), "target's why", "bfloat16", elements)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("jit(step)/reduce_sum", ["jit(step)/reduce_sum"]),
        ("jit(step)/(a/b:c)", ["jit(step)/a/b", "jit(step)/c"]),
        ("(jit(a)/b:c)", ["jit(a)/b", "c"]),
        ("a/(b:c/(d:e))", ["a/b", "a/c/d", "a/c/e"]),
        ("a/jvp(b)", ["a/jvp(b)"]),
        ("", [""]),
    ],
)
def test_merged_names_come_apart(name, parts):
    assert optimised.parted(name) == parts


def test_loops_calls_and_branches_are_counted():
    text = f"""HloModule m

%body (p: f32[]) -> f32[] {{
  {line(name="jit(f)/shard_map/inner/psum")}
}}

%called (p: f32[]) -> f32[] {{
  {line(name="jit(f)/shard_map/called/psum")}
}}

ENTRY %main (a: f32[8]) -> f32[8] {{
  %w = (f32[]) while(%t), condition=%cond, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  %v = (f32[]) while(%t), condition=%cond, body=%body, metadata={{op_name="jit(f)/shard_map/turns/while"}}
  %c = f32[] call(%t), to_apply=%called
  %d = f32[] conditional(%i, %t, %t), branch_computations={{%called, %cond}}, metadata={{op_name="jit(f)/shard_map/known/cond"}}
  ROOT %b = f32[] conditional(%i, %t, %t), branch_computations={{%called, %cond}}
}}

%cond (p: f32[]) -> pred[] {{
  %p = f32[] parameter(0)
}}
"""
    found = optimised.count(text, DEGREES, {"turns": 7, "known": 3})
    assert {instruction.operands[0].collective.why: times for instruction, times in found.items()} == {"inner": 12, "called": 5}
    with pytest.raises(KeyError, match="turns"):
        optimised.count(text, DEGREES, {"known": 3})
