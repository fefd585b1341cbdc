"""Pipelines are the same run: three optimizer steps in float64 under every schedule, beside the same three on one device."""

import jax
import pytest
from meshes import ROWS
from test_mesh import check


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble", "zb_v")


def case(model, mesh, num_microbatches, schedule="1f1b", num_layers=4, recompute="none", **pipeline):
    """One row of the tables below; the number of microbatches makes the microbatch."""
    shards = mesh.get("replica", 1) * mesh.get("data", 1)
    train = {"microbatch_size": ROWS // shards // num_microbatches, "recompute": recompute}
    return model, mesh, train | {"num_layers": num_layers, "pipeline": {"schedule": schedule, **pipeline}}


FAST = (
    # pipe alone: every schedule, every recomputation, every model
    case("mtnlg", {"pipe": 2}, 4),
    case("llama", {"pipe": 2}, 2, "gpipe"),
    case("neox", {"pipe": 4}, 4, "zero_bubble", recompute="full"),
    case("bloom", {"pipe": 2}, 4, "interleaved", chunks=2, recompute="selective"),
    case("mtnlg", {"pipe": 2}, 4, "zb_v", recompute="full"),
    case("bloom", {"pipe": 8}, 16, num_layers=9),
    case("llama", {"pipe": 8}, 8, "zero_bubble", num_layers=8),
    case("neox", {"pipe": 4}, 8, "interleaved", num_layers=13, chunks=3),
    # uneven stages: layers of one's own, and vocabularies that stages and shards do not divide
    case("llama", {"pipe": 2, "tensor": 4}, 4, layers_per_stage=(3, 1)),
    case("mtnlg", {"pipe": 3, "tensor": 2, "sequence_parallel": True}, 4, num_layers=7, layers_per_stage=(3, 4, 0)),
    # pairs and triples
    case("bloom", {"pipe": 2, "data": 2, "zero": 0}, 4, "zero_bubble"),
    case("neox", {"pipe": 2, "data": 4, "zero": 2}, 4, "zb_v"),
    case("llama", {"pipe": 2, "replica": 2}, 8, "1f1b", recompute="full"),
    case("mtnlg", {"pipe": 2, "data": 2, "tensor": 2, "sequence_parallel": True}, 4, "interleaved"),
    case("llama", {"pipe": 2, "data": 2, "tensor": 2, "zero": 2}, 2, "1f1b", recompute="selective"),
)


def name_of(row) -> str:
    model, mesh, train = row
    order = train["pipeline"]
    parts = [
        model,
        *(f"{key}{int(value)}" for key, value in mesh.items()),
        order["schedule"],
        train["recompute"],
        f"b{train['microbatch_size']}",
    ]
    return "-".join(map(str, parts))


@pytest.mark.parametrize("row", FAST, ids=name_of)
def test_three_steps_equal_one_device(row):
    check(*row)
