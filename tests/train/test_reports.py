"""What a run tells beside its steps: held-out loss by source, samples, speed; and what it would be, without running it."""

import json
import math
import shutil
from collections import Counter

import pytest

from mtnlg.data.store import Store
from mtnlg.model import count
from mtnlg.pretrain import run as pretrain
from mtnlg.run import clock as clocks
from mtnlg.run import metrics
from mtnlg.train import dry_run, peak

PROMPTS = ("the ", "seven")
MAX_TOKENS = 150  # on the way; more than `small` holds out, less than `large` does
REPORTS = {
    "eval__every_steps": "2",
    "eval__max_tokens": str(MAX_TOKENS),
    "sample__every_steps": "3",
    "sample__prompts": ",".join(PROMPTS),
    "data__heldout_fraction": "0.3",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small source and a large one, of different words."""
    folder = tmp_path_factory.mktemp("reports")
    for name, words, num_documents in (("small", "the quick brown fox", 8), ("large", "seven wizards with quartz or none", 40)):
        texts = [" ".join(words.split()[(i * n) % len(words.split())] for i in range(30)) for n in range(1, num_documents + 1)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return folder


@pytest.fixture(scope="module")
def resolve(tiny, folder):
    sources = ",".join(str(folder / f"{name}.jsonl") for name in ("small", "large"))
    return lambda **changes: tiny(**REPORTS | {"data__source": sources, "data__directory": str(folder / "tokens")} | changes)


@pytest.fixture(scope="module")
def run(folder, resolve):
    """(its folder, its result): six steps over both sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "best_gemm_flops_per_sec", lambda dtype: 1e11)
        return folder / "run", pretrain.pretrain(resolve(), str(folder / "run"), {})


def targets(folder):
    return {name: Store(folder / "tokens" / f"{name}.heldout").num_tokens - 1 for name in ("small", "large")}


def test_heldout_loss_of_every_source_and_of_all(run, folder):
    """At steps 2 and 4 of at most eval.max_tokens of each source, at the end of all there is; the mean is over tokens."""
    workdir, result = run
    lines = [line for line in metrics.read(workdir / "metrics.jsonl") if "heldout_loss" in line]
    assert [(line["step"], line["tokens"]) for line in lines] == [(step, step * 4 * 16) for step in (2, 4, 6)]
    whole = targets(folder)
    assert whole["small"] < MAX_TOKENS < whole["large"], whole
    for line in lines:
        tokens = {name: n if line["step"] == 6 else min(n, MAX_TOKENS) for name, n in whole.items()}
        by_source = {name: line[f"heldout_loss/{name}"] for name in tokens}
        mean = sum(by_source[name] * tokens[name] for name in tokens) / sum(tokens.values())
        assert line["heldout_loss"] == pytest.approx(mean, rel=1e-9)
        assert abs(by_source["small"] - by_source["large"]) > 1e-3, "equal, so any weights would do"
        assert 1 < line["heldout_loss"] < math.log(300) + 0.1
    assert lines[0]["heldout_loss"] > lines[1]["heldout_loss"] > 0
    assert {name: h.num_tokens for name, h in result.heldout.items()} == whole
    assert {name: h.loss for name, h in result.heldout.items()} == {name: lines[-1][f"heldout_loss/{name}"] for name in whole}


def test_every_step_has_its_line(run):
    workdir, _ = run
    lines = [line for line in metrics.read(workdir / "metrics.jsonl") if "loss" in line]
    assert [(line["step"], line["tokens"], line["samples"]) for line in lines] == [(n, n * 64, n * 4) for n in range(1, 7)]


def test_samples_of_every_prompt(run):
    workdir, result = run
    lines = metrics.read(workdir / "samples.jsonl")
    assert [(line["step"], line["prompt"]) for line in lines] == [(step, prompt) for step in (3, 6) for prompt in PROMPTS]
    assert all(set(line) == {"step", "prompt", "text"} and isinstance(line["text"], str) for line in lines)
    assert result.samples == [(line["prompt"], line["text"]) for line in lines if line["step"] == 6]
    assert any(line["text"] for line in lines)


def test_started_again_when_finished_it_writes_nothing(run, resolve, tmp_path, capsys):
    workdir, first = run
    shutil.copytree(workdir, tmp_path / "again")
    again = pretrain.pretrain(resolve(), str(tmp_path / "again"), {})
    assert again.finished and again.position == first.position
    assert again.heldout == first.heldout and again.samples == first.samples
    for name in ("metrics.jsonl", "samples.jsonl"):
        before, after = ((folder / name).read_bytes() for folder in (workdir, tmp_path / "again"))
        more = Counter(after.splitlines()) - Counter(before.splitlines())
        assert after == before, f"{name} has gained {list(more.elements())}"
    assert f"curves.png; samples in {tmp_path / 'again' / 'samples.jsonl'}; python -m mtnlg generate " in capsys.readouterr().out


def test_without_prompts_no_samples_are_named(run, resolve, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "again")
    pretrain.pretrain(resolve(sample__prompts=""), str(tmp_path / "again"), {})
    assert "curves.png; python -m mtnlg generate " in capsys.readouterr().out


# Speed


@pytest.fixture
def clock(monkeypatch):
    """A StepClock, and the time it reads in a list of one."""
    now = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now[0])
    return clocks.StepClock(), now


def test_rate_is_the_median_without_the_first_step(clock):
    step_clock, now = clock
    assert math.isnan(step_clock.median_rate())
    tokens = 0
    for secs in (50, 1, 2, 4, 5, 8):  # the first holds the compilation
        now[0] += secs
        tokens += 40
        step_clock.step_done(tokens)
        if secs == 50:
            assert math.isnan(step_clock.median_rate())
    assert step_clock.rates == [40, 20, 10, 8, 5]
    assert step_clock.median_rate() == 10
    assert step_clock.median_rate(3) == 8
    assert step_clock.median_rate(100) == 10


def test_pauses_are_not_counted_and_end_with_their_step(clock):
    step_clock, now = clock
    step_clock.step_done(1000)
    now[0] += 1
    for secs in (7, 9):
        with step_clock.paused():
            now[0] += secs
    now[0] += 1
    step_clock.step_done(1100)
    now[0] += 4
    step_clock.step_done(1200)
    assert step_clock.rates == [50, 25]


# Without running


def test_dry_run_names_what_count_counts(resolve):
    """With a vocabulary that is padded, microbatches and a ramp."""
    ramp = {"train__microbatch_size": "2", "train__ramp_start_size": "2", "train__ramp_increment": "2", "train__ramp_samples": "4"}
    config = resolve(**ramp)
    name, *lines = dry_run.describe(config).splitlines()
    said = {key.strip(): value.strip() for key, value in ((line[:17], line[17:]) for line in lines)}
    assert name == "unnamed: the step compiles"
    assert said["parameters"] == f"{count.num_params(config.model):,}"
    assert said["FLOPs a token"].split()[0] == f"{count.flops_per_token(config.model):,}"
    assert said["tokens"].startswith(f"{(2 + 2 + 4 * 4) * 16:,} in 6 steps of up to 64")
    assert said["batch"] == "2 microbatches of 2 sequences of 16 tokens"
    assert said["mesh"] == "one device; zero 1, sequence_parallel False" and "schedule" not in said
    stored = count.num_params(config.model) + (384 - 300) * 16
    assert said["state"] == f"{3 * 4 * stored + 4:,} bytes"  # parameters, two moments, one counter
    assert int(said["temporaries"].split()[0].replace(",", "")) > 0


def test_dry_run_names_mesh_and_schedule(resolve):
    said = dry_run.describe(resolve(mesh__pipe="2", train__microbatch_size="4", sample__prompts=""))
    assert "  batch          1 microbatch of 4 sequences of 16 tokens\n  mesh           pipe 2; zero 1, sequence_parallel False\n" in said
    assert "  schedule       1f1b, 5 ticks for the full batch\n" in said
