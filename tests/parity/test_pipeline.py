"""Pipelines are the same run: three optimizer steps in float64 under every schedule, beside the same three on one device."""

import itertools

import jax
import pytest
from meshes import MODELS, ROWS, config_of, on_one_device, three_steps
from test_mesh import BF16_STEP, SINGLE, check, relative

from mtnlg.core import schema


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def row(model, mesh, num_microbatches, schedule="1f1b", num_layers=4, rows=ROWS, **train):
    """One row of the tables below; the number of microbatches makes the microbatch. What is not of `train` is of the pipeline."""
    pipeline = {name: train.pop(name) for name in ("chunks", "in_flight", "layers_per_stage") if name in train}
    shards = mesh.get("replica", 1) * mesh.get("data", 1)
    sizes = {"batch_size": rows, "microbatch_size": rows // shards // num_microbatches, "num_layers": num_layers}
    return model, mesh, train | sizes | {"pipeline": {"schedule": schedule, **pipeline}}


FAST = (
    # pipe alone: every schedule, every recomputation, every model
    row("mtnlg", {"pipe": 2}, 4),
    row("llama", {"pipe": 2}, 2, "gpipe"),
    row("neox", {"pipe": 4}, 2, "zero_bubble", recompute="full"),  # fewer microbatches than stages: a waste, and right
    row("bloom", {"pipe": 2}, 4, "interleaved", recompute="selective"),
    row("mtnlg", {"pipe": 2}, 5, "zb_v", rows=15, recompute="full"),
    row("llama", {"pipe": 8}, 16, num_layers=9),
    row("neox", {"pipe": 4}, 8, "interleaved", num_layers=13, chunks=3),
    # layers of one's own, and vocabularies that stages and shards do not divide
    row("llama", {"pipe": 2, "tensor": 4}, 4, layers_per_stage=(3, 1)),
    row("mtnlg", {"pipe": 3, "tensor": 2, "sequence_parallel": True}, 4, num_layers=7, layers_per_stage=(3, 4, 0)),
    # pairs, triples, everything
    row("bloom", {"pipe": 2, "data": 2, "zero": 0}, 4, "zero_bubble", in_flight=3),
    row("neox", {"pipe": 2, "data": 4, "zero": 2}, 4, "zb_v"),
    row("llama", {"pipe": 2, "replica": 2}, 8, recompute="full"),
    row("bloom", {"pipe": 4, "context": 2}, 4, "zero_bubble"),
    row("llama", {"pipe": 2, "context": 2, "tensor": 2, "sequence_parallel": True}, 4, "zb_v", recompute="selective"),
    row("mtnlg", {"pipe": 2, "data": 2, "context": 2, "tensor": 2, "sequence_parallel": True}, 4, "interleaved"),
    row("llama", {"pipe": 2, "data": 2, "context": 2, "tensor": 2, "zero": 2}, 2, recompute="full"),
)


def every_schedule():
    """Each schedule on 2, 4 and 8 stages with M = P, 2P and 2P + 1, models and recomputation in turn."""
    turns = itertools.cycle(itertools.product(MODELS, ("none", "selective", "full")))
    for num_stages, schedule in itertools.product((2, 4, 8), schema.SCHEDULES):
        chunks = 2 if schedule in ("interleaved", "zb_v") else 1
        for num_microbatches in (num_stages, 2 * num_stages, 2 * num_stages + 1):
            if schedule == "interleaved" and num_microbatches % num_stages:
                continue  # refused, see tests/parallel/test_schedule.py
            model, recompute = next(turns)
            size = {"num_layers": num_stages * chunks + 1, "rows": num_microbatches}
            yield row(model, {"pipe": num_stages}, num_microbatches, schedule, recompute=recompute, **size)


def every_composition():
    """Two stages with each pair and triple of other axes, ZeRO 0 to 2, with and without sequence parallelism; and four axes at once."""
    turns = itertools.cycle(
        itertools.product(MODELS, ("none", "full", "selective"), ("1f1b", "zb_v", "zero_bubble", "interleaved", "gpipe"))
    )
    for replica, data, context, tensor in itertools.product((1, 2), repeat=4):
        if not 2 <= replica * data * context * tensor <= 8:
            continue
        for zero in (0, 1, 2) if data > 1 else (1,):
            for sequence_parallel in (False, True) if tensor > 1 else (False,):
                model, recompute, schedule = next(itertools.islice(turns, 10, None))
                mesh = {"pipe": 2, "replica": replica, "data": data, "context": context, "tensor": tensor}
                yield row(model, mesh | {"zero": zero, "sequence_parallel": sequence_parallel}, 4, schedule, recompute=recompute)


def name_of(case) -> str:
    model, mesh, train = case
    axes = [f"{key}{int(value)}" for key, value in mesh.items() if value != 1 or key == "zero"]
    num_microbatches = train["batch_size"] // train["microbatch_size"] // (mesh.get("replica", 1) * mesh.get("data", 1))
    return "-".join([model, *axes, train["pipeline"]["schedule"], f"M{num_microbatches}", train.get("recompute", "none")])


@pytest.mark.parametrize("case", FAST, ids=name_of)
def test_three_steps_equal_one_device(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(every_schedule()), ids=name_of)
def test_every_schedule_equals_one_device(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", list(every_composition()), ids=name_of)
def test_every_composition_equals_one_device(case):
    check(*case)


def test_float32_on_stages():
    model, mesh, train = row("llama", {"pipe": 2, "context": 2, "tensor": 2}, 4, "zb_v")
    check(model, mesh, train, SINGLE, compute_dtype="float32", param_dtype="float32")


def test_bfloat16_on_stages_is_as_far_from_float32_as_on_one_device():
    """Messages, rings and taps in bfloat16 lose no more than the blocks themselves; gradients are summed in float32."""
    model, mesh, train = row("neox", {"pipe": 2, "data": 2}, 4, "zero_bubble")
    narrow = {"compute_dtype": "bfloat16", "param_dtype": "float32"}
    exact = on_one_device(model, 4, compute_dtype="float32", param_dtype="float32")["first_moments"]
    alone = on_one_device(model, 4, **narrow)["first_moments"]
    there = three_steps(config_of(model, mesh, **train, **narrow), 4)["first_moments"]
    for wide, one, staged in zip(*(jax.tree.leaves(tree["blocks"]) for tree in (exact, alone, there)), strict=True):
        assert relative(staged, wide) < max(2 * relative(one, wide), BF16_STEP)


# In microbatches of 0 and 1 on two stages: all backwards first, their weights in the end and in another order than any schedule's.
MINE = """tick,stage,op,microbatch,virtual_stage
0,0,F,0,0
1,0,F,1,0
1,1,F,0,1
2,1,B,0,1
3,0,B,0,0
3,1,F,1,1
4,1,B,1,1
5,0,B,1,0
5,1,W,1,1
6,0,W,1,0
6,1,W,0,1
7,0,W,0,0
"""


def test_a_table_of_ones_own(tmp_path):
    (tmp_path / "mine.csv").write_text(MINE)
    model, mesh, train = row("bloom", {"pipe": 2, "tensor": 2}, 2, str(tmp_path / "mine.csv"))
    check(model, mesh, train)
