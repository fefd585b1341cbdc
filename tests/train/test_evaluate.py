"""Held-out loss against the NumPy oracle, bits per byte by hand, and in which order the loop tells what happened."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from harness import config_of, error
from numpy_gpt import logits
from test_numpy_gpt import SEQ_LEN, VARIANTS, make

from mtnlg.core import schema
from mtnlg.core.errors import NumericalError
from mtnlg.data import loader
from mtnlg.data.store import Store, StoreWriter
from mtnlg.parallel import mesh as meshes
from mtnlg.train import evaluate, loop
from mtnlg.train.schedule import Position

ROWS = 2
STREAMS = {"short": 2 * SEQ_LEN + 3, "long": 4 * SEQ_LEN + 5}  # a rest in a row, and a row of nothing but padding


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Held-out loss


def oracle_nats(spec, params, ids):
    """Every window scored for itself, without batches and without padding."""
    total = 0.0
    for first in range(0, len(ids) - 1, SEQ_LEN):
        window = np.asarray(ids[first : first + SEQ_LEN + 1])
        places = np.arange(len(window) - 1)[None]
        batch = {"tokens": window[None, :-1], "positions": places, "segment_ids": np.ones_like(places)}
        z_LV = logits(spec, params, batch)[0, :, : spec.vocab_size]
        total += float((np.log(np.exp(z_LV).sum(-1)) - z_LV[places[0], window[1:]]).sum())
    return total


@pytest.fixture(scope="module", params=[{}, {"data": 2, "context": 3}], ids=str)
def case(request):
    """(spec, params, mesh, program), compiled once for every stream; in parts too, where weights must find their places."""
    with jax.enable_x64(True):
        spec, params, _, _ = make("mtnlg")
        config = config_of(spec, SEQ_LEN, VARIANTS["mtnlg"][1], loss_chunk_tokens=5)
        config = dataclasses.replace(config, mesh=schema.Mesh(**request.param))
        mesh = meshes.make(config.mesh)
        return spec, params, mesh, evaluate.program(config, mesh)


@pytest.mark.parametrize("max_tokens", [None, SEQ_LEN + 2])
def test_two_sources_with_padding_in_the_last_batch(case, tmp_path, max_tokens):
    spec, params, mesh, program = case
    found, expected = {}, {}
    for number, (name, length) in enumerate(STREAMS.items()):
        ids = np.random.default_rng(number).integers(spec.vocab_size, size=length)
        with StoreWriter(tmp_path / name, tokenizer_sha256="0" * 64, vocab_size=spec.vocab_size) as writer:
            writer.add(ids)
        stream = loader.Heldout(Store(tmp_path / name), seq_len=SEQ_LEN, reset_at_documents=False, eod_id=0)
        batches = list(stream.batches(ROWS, max_tokens))
        assert (batches[-1]["weights"] == 0).any(), "no padding, so nothing is shown about it"
        found[name] = evaluate.heldout(program, mesh, params, batches)
        expected[name] = oracle_nats(spec, params, ids if max_tokens is None else ids[: max_tokens + 1])
    wanted = {name: min(length - 1, max_tokens or length) for name, length in STREAMS.items()}
    assert {name: h.num_tokens for name, h in found.items()} == wanted
    for name, heldout in found.items():
        assert error(heldout.nats, expected[name]) < 1e-9, name
        assert error(heldout.loss, expected[name] / wanted[name]) < 1e-9, name


def test_weights_count_into_the_sum(case):
    """A batch of the contract with fractional weights: the sum is weighted, the count is of places with any weight."""
    spec, params, mesh, program = case
    _, _, batch, _ = make("mtnlg")
    z_BLV = logits(spec, params, batch)[..., : spec.vocab_size]
    nll_BL = np.log(np.exp(z_BLV).sum(-1)) - np.take_along_axis(z_BLV, batch["targets"][..., None], -1)[..., 0]
    heldout = evaluate.heldout(program, mesh, params, [batch, batch])
    assert error(heldout.nats, 2 * (nll_BL * batch["weights"]).sum()) < 1e-9
    assert heldout.num_tokens == 2 * int((batch["weights"] > 0).sum())


def test_loss_is_per_token():
    assert evaluate.Heldout(nats=12.0, num_tokens=8).loss == 1.5


def test_bits_per_byte_by_hand():
    """8 bits scored, and 4 more for the first token of each text, of 16 there are; over 4 bytes."""
    heldout = evaluate.Heldout(nats=8 * math.log(2), num_tokens=5)
    assert evaluate.bits_per_byte(heldout, 4, 16) == pytest.approx((8 + 4) / 4, rel=1e-12)
    assert evaluate.bits_per_byte(heldout, 4, 16, num_texts=3) == pytest.approx((8 + 3 * 4) / 4, rel=1e-12)


# The loop

CONFIG = schema.Config(model=schema.Model(seq_len=10), train=schema.Train(num_steps=4, batch_size=2))
STOP_NEVER = 10**9


def told(config=CONFIG, *, position=Position(), stop_after=STOP_NEVER, skipped=(), num_skipped=0):  # noqa: B008 (a NamedTuple of numbers)
    """(everything that happened in order, what loop.run returned, how many batches were taken, reports)."""
    events, reports, taken = [], [], []

    def batches():
        while True:
            taken.append(None)
            yield loop.Batch({"tokens": "fields"}, 3, 2)

    def step_program(state, fields, num_microbatches, step, rate, with_norms, timetable):
        assert timetable is None and (state, fields, num_microbatches) == (f"state {step}", {"tokens": "fields"}, 3)
        events.append(("step", step + 1, with_norms))
        metrics = {"loss": 0.5 * step, "grad_norm": 1.0, "skipped": step + 1 in skipped, "norms": {"grad": {"mlp": float(step + 1)}}}
        return f"state {step + 1}", metrics

    def before_step(state, batch, at):
        assert state == f"state {at.step}" and batch.num_samples > 0

    def on_report(report):
        events.append(("report", report.position.step))
        reports.append(report)

    def on_step(state, report):
        assert state == f"state {report.position.step}"
        events.append(("on_step", report.position.step))

    hooks = {"before_step": before_step, "on_report": on_report, "on_step": on_step}
    hooks["should_stop"] = lambda: ("on_step", stop_after) in events
    try:
        ended = loop.run(config, step_program, f"state {position.step}", position, batches(), **hooks, num_skipped=num_skipped)
    except NumericalError as error:
        ended = error
    return events, ended, len(taken), reports


def test_reports_come_one_step_late_and_the_state_at_once():
    events, ended, taken, reports = told()
    assert [event[:2] for event in events] == [
        *[("step", 1), ("on_step", 1)],
        *[("step", 2), ("report", 1), ("on_step", 2)],
        *[("step", 3), ("report", 2), ("on_step", 3)],
        *[("step", 4), ("report", 3), ("on_step", 4), ("report", 4)],
    ]
    assert ended == ("state 4", Position(4, 8, 80), 0)
    assert taken == 4
    assert [(r.position, r.metrics["loss"]) for r in reports] == [(Position(n, 2 * n, 20 * n), 0.5 * (n - 1)) for n in (1, 2, 3, 4)]


def test_a_stop_in_between_still_reports_the_last_step():
    events, ended, taken, _ = told(stop_after=2)
    assert [event[:2] for event in events] == [("step", 1), ("on_step", 1), ("step", 2), ("report", 1), ("on_step", 2), ("report", 2)]
    assert ended == ("state 2", Position(2, 4, 40), 0)
    assert taken == 2


def test_it_goes_on_where_it_was_and_does_nothing_at_the_end():
    events, ended, _, _ = told(position=Position(3, 5, 50))
    assert [event[:2] for event in events] == [("step", 4), ("on_step", 4), ("report", 4)]
    assert ended == ("state 4", Position(4, 7, 70), 0)
    assert told(position=Position(4, 8, 80)) == ([], ("state 4", Position(4, 8, 80), 0), 0, [])


def test_norms_are_asked_for_and_read_only_when_due():
    config = dataclasses.replace(CONFIG, log=schema.Log(norms_every_steps=2))
    events, _, _, reports = told(config)
    assert [event[2] for event in events if event[0] == "step"] == [False, True, False, True]
    assert [r.metrics.get("norms") for r in reports] == [None, {"grad": {"mlp": 2.0}}, None, {"grad": {"mlp": 4.0}}]


def test_the_rate_is_that_of_the_tokens_after_the_step():
    optimizer = schema.Optimizer(learning_rate=1.0, schedule="constant", warmup_tokens=80)
    _, _, _, reports = told(dataclasses.replace(CONFIG, optimizer=optimizer))
    assert [r.learning_rate for r in reports] == [0.25, 0.5, 0.75, 1.0]


def test_so_many_skipped_steps_one_after_the_other_end_it():
    config = dataclasses.replace(CONFIG, guard=schema.Guard(max_skipped=2))
    events, ended, _, reports = told(config, skipped={2, 3})
    assert isinstance(ended, NumericalError) and "(step 3)" in str(ended)
    assert events[-2:] == [("step", 4, False), ("report", 3)]
    assert [r.position.step for r in reports] == [1, 2, 3]


def test_skipped_steps_are_counted_from_the_last_that_was_not():
    config = dataclasses.replace(CONFIG, guard=schema.Guard(max_skipped=2))
    assert told(config, skipped={1, 3})[1] == ("state 4", Position(4, 8, 80), 0)
    assert told(config, skipped={2, 4})[1] == ("state 4", Position(4, 8, 80), 1)
    assert isinstance(told(config, skipped={1}, num_skipped=1)[1], NumericalError), "those before a restart count"
