"""A tick does its own op and no other: every matrix product stands in the loop of its op, which makes no turn in others' ticks.

XLA moves out of a loop what is the same in each turn; a chunk of one layer reads the same in each turn.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from mtnlg import pipeline, spmd
from mtnlg.core import schema
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import timetable
from mtnlg.train import state as states

M, ROWS = 4, 2
MODEL = schema.Model(num_layers=4, d_model=16, num_heads=2, vocab_size=64, vocab_multiple=64, seq_len=8)
CALLED = re.compile(r"(calls|to_apply|body|condition)=%([\w.-]+)")
PRODUCT = re.compile(r' dot\(.*op_name="([^"]*)"')


def products_of_every_tick(schedule: str, recompute: str) -> tuple[list[str], int]:
    """(names of the matrix products that stand in the body of the loop over ticks itself, number of all products)."""
    train = schema.Train(batch_size=ROWS * M, microbatch_size=ROWS, recompute=recompute)
    config = schema.Config(model=MODEL, train=train, mesh=schema.Mesh(pipe=2), pipeline=schema.Pipeline(schedule=schedule))
    made = meshes.make(config.mesh)
    batch = {name: jnp.zeros((M, ROWS, 8), jnp.float32 if name == "weights" else jnp.int32) for name in spmd.BATCH_FIELDS}
    step = jax.jit(spmd.loss_and_grad(config, made))
    text = step.lower(states.abstract(config, made).params, batch, M, 0, timetable.of(config, M)).compile().as_text()
    computations = {part.split(" ", 1)[0].lstrip("%"): part for part in re.split(r"\n(?=%|ENTRY )", text)}
    ticks = re.search(rf'body=%([\w.-]+).*op_name="[^"]*shard_map/{pipeline.TICKS}/while"', text)[1]
    todo, found = [ticks], []
    while todo:
        part = computations[todo.pop()]
        found += PRODUCT.findall(part)
        todo += [name for kind, name in CALLED.findall(part) if kind != "body"]
    return found, len(PRODUCT.findall(text))


@pytest.mark.parametrize(("schedule", "recompute"), [("interleaved", "none"), ("zb_v", "full")])
def test_no_matrix_product_is_in_every_tick(schedule, recompute):
    found, num_products = products_of_every_tick(schedule, recompute)
    assert found == [] and num_products > 10


def test_a_product_that_was_moved_out_is_noticed(monkeypatch):
    """Negative control: without the barrier, W of a chunk of one layer is done in every tick."""
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda tree: tree)
    found, _ = products_of_every_tick("zb_v", "none")
    assert found and all("/W/" in name for name in found)
