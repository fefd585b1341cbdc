"""The JAX model against the NumPy oracle in float64: loss, every gradient, three optimizer steps, for every option set."""

import dataclasses

import jax
import numpy as np
import pytest
from harness import config_of, error, worst
from numpy_gpt import adamw_init, adamw_step, logits, loss_and_grad
from test_numpy_gpt import SEQ_LEN, VARIANTS, make

from mtnlg import spmd
from mtnlg.model import loss, transformer
from mtnlg.parallel import mesh as meshes
from mtnlg.train import step as steps
from mtnlg.train.optimizer import adamw, decays
from mtnlg.train.state import State

TOLERANCE = 1e-9
LEARNING_RATES = (3e-3, 2e-3, 1e-3)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def case(name, **train):
    spec, params, batch, _ = make(name)
    config = config_of(spec, SEQ_LEN, VARIANTS[name][1], **train)
    return spec, params, batch, config, meshes.make(config.mesh)


def stacked(batch, num_microbatches=1):
    return {key: array.reshape(num_microbatches, -1, array.shape[-1]) for key, array in batch.items()}


def check_sums(name, num_microbatches=1, **train):
    spec, params, batch, config, mesh = case(name, **train)
    expected_loss, expected_weight, expected_grads = loss_and_grad(spec, params, batch)
    sums = jax.jit(spmd.loss_and_grad(config, mesh))(params, stacked(batch, num_microbatches), num_microbatches, 0)
    assert error(sums["loss"], expected_loss) < TOLERANCE
    assert float(sums["weight"]) == pytest.approx(expected_weight, rel=1e-6)
    worst_error, path = worst(sums["grads"], expected_grads)
    assert worst_error < TOLERANCE, path
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(sums["grads"]))


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_every_gradient(name):
    check_sums(name)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(recompute):
    check_sums("neox", recompute=recompute)


def test_unrolled_layers_change_nothing():
    check_sums("llama", unroll_layers=True)


@pytest.mark.parametrize("name", ["mtnlg", "llama"])
def test_loss_in_uneven_chunks_of_tokens(name):
    check_sums(name, loss_chunk_tokens=5)


def test_accumulation_over_microbatches_with_uneven_masks():
    check_sums("mtnlg", num_microbatches=2)


def test_only_the_first_microbatches_count():
    """What lies beyond num_microbatches, as in a batch ramp, is not read into the sums."""
    spec, params, batch, config, mesh = case("mtnlg")
    first = {key: array[:1] for key, array in batch.items()}
    expected_loss, _, expected_grads = loss_and_grad(spec, params, first)
    sums = jax.jit(spmd.loss_and_grad(config, mesh))(params, stacked(batch, 2), 1, 0)
    assert error(sums["loss"], expected_loss) < TOLERANCE
    assert worst(sums["grads"], expected_grads)[0] < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_logits(name):
    spec, params, batch, config, _ = case(name)

    @jax.jit
    def forward(params, batch):
        x_BLD, _ = transformer.hidden(config.model, params, batch)
        return loss.chunk_logits(x_BLD.reshape(-1, spec.d_model), transformer.head_kernel(config.model, params), spec.vocab_size)

    got = forward(params, batch)
    expected = logits(spec, params, batch)[..., : spec.vocab_size]
    assert error(got[:, : spec.vocab_size].reshape(expected.shape), expected) < TOLERANCE


STEPPED = ("mtnlg", "qwen3", "neox")  # every kind of leaf is in one of them; test-slow takes the rest


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in STEPPED else pytest.mark.slow) for n in VARIANTS])
def test_three_optimizer_steps(name):
    """Clipping, Adam and decay through the program that training runs, with Adam's eps large enough to judge updates by."""
    spec, params, batch, config, mesh = case(name)
    config = _with_optimizer(config, eps=1e-2, clip_norm=0.05, weight_decay=0.1)
    program = steps.make(config, mesh)
    state = State(params, adamw(config.optimizer).init(params))
    expected, expected_state = params, adamw_init(params)
    for number, rate in enumerate(LEARNING_RATES):
        loss_sum, weight_sum, grads = loss_and_grad(spec, expected, batch)
        grads = jax.tree.map(lambda g, w=weight_sum: g / w, grads)
        settings = {"b1": 0.9, "b2": 0.95, "eps": 1e-2, "weight_decay": 0.1, "clip_norm": 0.05, "decays": decays}
        expected, expected_state = adamw_step(expected, grads, expected_state, learning_rate=rate, **settings)
        state, metrics = program(state, stacked(batch), 1, number, rate, True)
        assert error(metrics["loss"], loss_sum / weight_sum) < TOLERANCE
    worst_error, path = worst(state.params, expected)
    assert worst_error < TOLERANCE, path
    moved = worst(jax.tree.map(np.asarray, state.params), params)[0]
    assert moved > 1e-4, "the steps did not move the parameters, so equality would prove nothing"


def test_norms_by_group():
    spec, params, batch, config, mesh = case("mtnlg")
    _, weight_sum, grads = loss_and_grad(spec, params, batch)
    _, metrics = steps.make(config, mesh)(State(params, adamw(config.optimizer).init(params)), stacked(batch), 1, 0, 1e-3, True)
    squares = [np.sum(np.square(leaf / weight_sum)) for leaf in jax.tree.leaves(grads["blocks"]["mlp"])]
    assert error(metrics["norms"]["grad"]["mlp"], np.sqrt(sum(squares))) < TOLERANCE
    assert error(metrics["norms"]["param"]["norms"], _norms_of(params)) < TOLERANCE
    assert metrics["norms"]["activation"].shape == (spec.num_layers,)
    assert np.all(np.asarray(metrics["norms"]["activation"]) > 0)


def _norms_of(params):
    leaves = [params["final_norm"], params["blocks"]["attention_norm"], params["blocks"]["mlp_norm"]]
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(leaves)))


def _with_optimizer(config, **values):
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **values))
