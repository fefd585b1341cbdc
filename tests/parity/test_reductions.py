"""Negative controls: each collective taken away, and the parity of loss, gradients, scores, vectors or logits must fail.

A collective is known by its `why` (core/collectives.py). Taken away, it leaves what a device has by itself, in the right shape: no sum,
its own share of what would be scattered, copies of its own share of what would be gathered.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from harness import worst
from meshes import batch, config_of

from mtnlg import spmd
from mtnlg.core import collectives
from mtnlg.infer.engine import Engine
from mtnlg.infer.request import Request
from mtnlg.model import blockwise
from mtnlg.parallel import arrangement, timetable
from mtnlg.parallel import mesh as meshes
from mtnlg.train import state as states

EXACT, WRONG = 1e-9, 1e-4
ALL = jax.P(None, *meshes.BATCH)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Meshes that together use every collective of a training step. Dropout is off where a lost sum would only rescale what it drops.
TRAINING = {
    "zero 1, sequence parallel": ("bloom", {"data": 2, "tensor": 2, "zero": 1, "sequence_parallel": True}),
    "zero 3": ("mtnlg", {"data": 2, "tensor": 2, "zero": 3}),
    "replicas of shards": ("neox", {"replica": 2, "data": 2, "zero": 2}),
    "copied key/value heads": ("llama", {"tensor": 4}),
    "ring": ("bloom", {"data": 2, "context": 4, "zero": 1}),
    "stages and gathered keys": ("bloom", {"pipe": 4, "context": 2}),
}
IN_AND_OUT = ["attention, into its heads", "attention, out of its heads", "feed-forward, into its columns", "feed-forward, out of its rows"]
EMBEDDING, HEAD = "embedding, out of the rows of the vocabulary", "head, into the rows of the vocabulary"
LARGEST = "largest logit of the whole vocabulary"
EXPONENTIALS = "sum of exponentials, and the target's logit, over the vocabulary"
PLACES = "positions and segments, of all places"
SCALARS = ["loss, over stages and tokens", "weight, over stages and tokens"]
USED = {
    "zero 1, sequence parallel": [
        *IN_AND_OUT,
        EMBEDDING,
        HEAD,
        *(f"{why}, backward" for why in (*IN_AND_OUT, EMBEDDING, HEAD)),
        LARGEST,
        EXPONENTIALS,
        *SCALARS,
        "mean squares, over tokens",
        "weights, gathered for the step",
        "gradients, over samples, each device its shards",
        "gradients, over samples",
        "gradients, over heads or places",
    ],
    "zero 3": [
        *(f"{why}, backward" for why in ("attention, into its heads", "feed-forward, into its columns", HEAD)),
        "attention, out of its heads",
        "feed-forward, out of its rows",
        EMBEDDING,
        LARGEST,
        EXPONENTIALS,
        *SCALARS,
        "mean squares, over tokens",
        "weights, gathered for one block",
        "gradients of one block, over samples",
        "gradients, over samples",
    ],
    "replicas of shards": [
        *SCALARS,
        "mean squares, over tokens",
        "weights, gathered for the step",
        "gradients, over samples, each device its shards",
        "gradients, over samples",
    ],
    "copied key/value heads": [
        *(f"{why}, backward" for why in ("attention, into its heads", "feed-forward, into its columns", HEAD)),
        "attention, out of its heads",
        "feed-forward, out of its rows",
        EMBEDDING,
        LARGEST,
        EXPONENTIALS,
        "gradients, over heads or places",
    ],
    "ring": [
        blockwise.KEYS,
        blockwise.GRADIENTS,
        PLACES,
        *SCALARS,
        "mean squares, over tokens",
        "gradients, over samples",
        "weights, gathered for the step",
        "gradients, over samples, each device its shards",
    ],
    "stages and gathered keys": [
        "messages, to the next stage",
        "messages, to the stage before",
        "embedding and head, gathered for the step",
        "gradients, over stages",
        "gradients, over stages, each device its shards",
        "mean squares, of all stages",
        blockwise.ALL_KEYS,
        f"{blockwise.ALL_KEYS}, backward",
        PLACES,
        *SCALARS,
        "mean squares, over tokens",
        "gradients, over samples",
    ],
}
# A control for each collective once, and again where another mesh uses it in another way.
CONTROLS = [("zero 1, sequence parallel", why) for why in USED["zero 1, sequence parallel"]]
CONTROLS += [("zero 3", why) for why in USED["zero 3"] if why not in (*SCALARS, LARGEST, EXPONENTIALS, "mean squares, over tokens")]
CONTROLS += [("replicas of shards", why) for why in USED["replicas of shards"][-2:]]
CONTROLS += [("copied key/value heads", "gradients, over heads or places")]
CONTROLS += [("ring", why) for why in USED["ring"][:-2]] + [("stages and gathered keys", why) for why in USED["stages and gathered keys"]]


def sums_of(model, mesh):
    config = config_of(model, mesh)
    made = meshes.make(config.mesh)
    params, fields = states.make(config, made).params, meshes.put(made, batch(0), ALL)
    sums = jax.jit(spmd.loss_and_grad(config, made))(params, fields, 1, 0, timetable.on_mesh(config, made, 1))
    return jax.device_get(sums | {"grads": arrangement.canonical(config, made, sums["grads"])})


@functools.cache
def sums_on_one_device(model):
    return sums_of(model, {})


def difference(got, expected) -> float:
    """The worst relative error of gradients, loss, weight and scale of activations; infinite if there is a NaN."""
    errors = [worst(got["grads"], expected["grads"])[0]]
    errors += [float(np.max(np.abs(got[name] - expected[name]) / np.abs(expected[name]))) for name in ("loss", "weight", "squares_N")]
    return max(np.inf if np.isnan(error) else error for error in errors)


def take_away(monkeypatch, why: str) -> None:
    """Replaces the collective of this name by what the device has without the others."""

    def patched(kind, alone):
        real = getattr(collectives, kind)

        def collective(x, axes, *rest, **named):
            reason = next(argument for argument in rest if isinstance(argument, str))
            return alone(x, axes, *rest) if reason == why else real(x, axes, *rest, **named)

        monkeypatch.setattr(collectives, kind, collective)

    def own_share(x, axis, dim, *_):
        length = x.shape[dim] // collectives.degree(axis)
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis) * length, length, dim)

    patched("all_reduce", lambda x, *_: x)
    patched("all_max", lambda x, *_: x)
    patched("permute", lambda x, *_: x)
    patched("reduce_scatter", own_share)
    patched("all_gather", lambda x, axis, dim, *_: jnp.concatenate([x] * collectives.degree(axis), dim))


@pytest.mark.parametrize(("case", "why"), CONTROLS)
def test_without_a_collective_the_step_is_wrong(monkeypatch, case, why):
    model, mesh = TRAINING[case]
    expected = sums_on_one_device(model)
    take_away(monkeypatch, why)
    assert not difference(sums_of(model, mesh), expected) < WRONG


def record(monkeypatch) -> set[str]:
    """The names of the collectives that programs traced from now on use."""
    seen = set()

    def recorded(kind):
        real = getattr(collectives, kind)

        def collective(x, axes, *rest, **named):
            result = real(x, axes, *rest, **named)
            if result is not x:  # over axes of degree 1 there is none
                seen.add(next(argument for argument in rest if isinstance(argument, str)))
            return result

        monkeypatch.setattr(collectives, kind, collective)

    for kind in ("all_reduce", "all_max", "reduce_scatter", "all_gather", "permute"):
        recorded(kind)
    return seen


@pytest.mark.parametrize("case", TRAINING)
def test_these_are_all_collectives_of_a_step(monkeypatch, case):
    """So that a new one cannot come without its control."""
    model, mesh = TRAINING[case]
    config = config_of(model, mesh)
    made = meshes.make(config.mesh)
    seen = record(monkeypatch)
    arguments = (states.abstract(config, made).params, batch(0), jnp.int32(1), jnp.int32(0), timetable.of(config, 1))
    jax.eval_shape(spmd.loss_and_grad(config, made), *arguments)
    assert seen == set(USED[case])


SCORING = {LARGEST, EXPONENTIALS, "first of the likeliest tokens", "scores, of all places", "scores, from the last stage"}
POOLING = {"hidden states, over the places of a text"}
GENERATION = {"logits, of the whole vocabulary", "logits, of all rows"}


def test_scores_vectors_and_generation_use_no_other(monkeypatch):
    """Beside those of a step, which the block brings along, only what is taken away below."""
    seen = record(monkeypatch)
    mesh = {"replica": 2, "data": 2, "context": 2, "tensor": 2, "sequence_parallel": True}
    scores(mesh)
    scores({"pipe": 2, "context": 2, "tensor": 2})
    pooled(mesh)
    generated("mtnlg", mesh)
    used = SCORING | POOLING | GENERATION
    assert used <= seen <= used | {why for _, why in CONTROLS}


# Scores


def read(program, mesh):
    config = config_of("mtnlg", mesh, num_layers=4, microbatch_size=2)
    made = meshes.make(config.mesh)
    fields = {name: array[0] for name, array in batch(1).items()}
    params = states.make(config, made).params
    return jax.device_get(jax.jit(program(config, made))(params, meshes.put(made, fields)))


scores = functools.partial(read, spmd.score)


MESHES = [
    {"data": 4, "tensor": 2, "zero": 3},
    {"data": 2, "tensor": 4, "zero": 1, "sequence_parallel": True},
    {"replica": 2, "data": 2, "tensor": 2, "zero": 2},
    {"data": 2, "context": 4, "zero": 3},
    {"context": 2, "tensor": 4, "sequence_parallel": True},
    {"pipe": 4, "data": 2, "zero": 2},
    {"pipe": 2, "context": 2, "tensor": 2, "sequence_parallel": True},
]


@pytest.mark.parametrize("mesh", MESHES)
def test_scores_equal_one_device(mesh):
    (nll, greedy), (expected_nll, expected_greedy) = scores(mesh), scores({})
    np.testing.assert_allclose(nll, expected_nll, rtol=EXACT)
    np.testing.assert_array_equal(greedy, expected_greedy)
    assert 0 < expected_greedy.sum() < expected_greedy.size


@pytest.mark.parametrize("why", sorted(SCORING))
def test_without_a_collective_the_scores_are_wrong(monkeypatch, why):
    expected = scores({})
    take_away(monkeypatch, why)
    nll, greedy = scores({"pipe": 2, "context": 2, "tensor": 2})
    assert not (np.allclose(nll, expected[0], rtol=EXACT) and np.array_equal(greedy, expected[1]))


# Vectors


pooled = functools.partial(read, spmd.pooled)


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if "pipe" not in mesh])
def test_vectors_equal_one_device(mesh):
    expected = pooled({})
    assert np.max(np.abs(pooled(mesh) - expected)) < EXACT * np.max(np.abs(expected))
    assert expected.shape == (16, 16) and np.any(expected != 0, axis=1).sum() == np.any(batch(1)["weights"][0] > 0, axis=1).sum()


@pytest.mark.parametrize("mesh", [{"context": 2}, {"tensor": 2, "sequence_parallel": True}])
@pytest.mark.parametrize("why", sorted(POOLING))
def test_without_a_collective_the_vectors_are_wrong(monkeypatch, mesh, why):
    expected = pooled({})
    take_away(monkeypatch, why)
    assert np.max(np.abs(pooled(mesh) - expected)) > WRONG * np.max(np.abs(expected))


# Generation


def generated(model, mesh):
    """Prompts of different lengths, fewer than the devices that share them; greedy and drawn."""
    config = config_of(model, mesh)
    made = meshes.make(config.mesh)
    engine = Engine(config, made, states.make(config, made).params, num_rows=3)
    random = np.random.default_rng(3)
    prompts = [random.integers(0, 27, length).tolist() for length in (1, 3, 2)]
    return engine.generate([Request(p, max_new_tokens=5, temperature=t, seed=7) for p, t in zip(prompts, (0, 0.9, 1.5), strict=True)])


generated_alone = functools.cache(lambda model: generated(model, {}))


@pytest.mark.parametrize(
    ("model", "mesh"),
    [
        ("llama", {"tensor": 4}),
        ("bloom", {"data": 2, "tensor": 2, "zero": 3, "sequence_parallel": True}),
        ("mtnlg", {"replica": 2, "data": 4}),
        ("llama", {"data": 2, "context": 4, "tensor": 2, "sequence_parallel": True}),
    ],
)
def test_generation_equals_one_device(model, mesh):
    assert generated(model, mesh) == generated_alone(model)


@pytest.mark.parametrize("why", sorted(GENERATION))
def test_without_a_collective_the_tokens_are_wrong(monkeypatch, why):
    expected = generated_alone("mtnlg")
    take_away(monkeypatch, why)
    assert generated("mtnlg", {"data": 2, "tensor": 2}) != expected
