"""A whole training run: data, model, loop, checkpoints, reports, in one folder. Started again with the same folder, it goes on."""

import contextlib
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from mtnlg import checkpoint, pretrained
from mtnlg.core import config as configs
from mtnlg.core import fault, files, schema
from mtnlg.parallel import mesh as meshes
from mtnlg.parallel import processes, timetable
from mtnlg.pretrain import fast, rollback
from mtnlg.pretrain.examiner import Examiner
from mtnlg.pretrain.feed import Feed
from mtnlg.pretrain.keeper import Keeper
from mtnlg.pretrain.stragglers import Stragglers
from mtnlg.pretrain.telling import Telling
from mtnlg.run import environment, goodput
from mtnlg.run.folder import STOP, RunFolder, change_table
from mtnlg.run.goodput import Ledger
from mtnlg.run.phases import Phases
from mtnlg.run.screen import Screen
from mtnlg.run.stop import StopSignals
from mtnlg.run.watchdog import Watchdog
from mtnlg.train import evaluate, loop, replay
from mtnlg.train import step as steps
from mtnlg.train.schedule import Position
from mtnlg.train.state import State

# What becomes of a signal.
STOPS = "the run stops after the step under way (a first step waits for the compiler) and saves"
ENDS = "the last step is done; the run saves it, takes the held-out loss, writes its samples and ends"


class Result(NamedTuple):
    """How a run ended. Held-out figures and curves only if it reached its last step."""

    position: Position
    finished: bool
    heldout: dict[str, evaluate.Heldout]
    heldout_bytes: int
    samples: list[tuple[str, str]]
    tokens_per_sec: float
    peak_flops_per_sec: float


def pretrain(config: schema.Config, workdir: str, overrides: dict) -> Result:
    """Trains until train.num_steps, from the newest good checkpoint in `workdir` if there is one.

    A signal of `run.stop`, or a file `stop` in `workdir`, ends it earlier, saved.

    In a job of several processes every process calls this; process 0 writes the files and tells people. All must see the same
    `workdir`. Raises any MtnlgError; what is already saved stays.
    """
    same = {name: str(value) for name, value in configs.to_flat(config).items()} | environment.versions()
    timetable.require(config)
    if config.init.from_ is not None and not checkpoint.whole_steps(pathlib.Path(workdir) / "checkpoints"):
        pretrained.require_run(config.init.from_)
    same["the pipeline's timetable"] = timetable.digest(config)
    processes.require_same(same, "the same command and the same packages for every process")
    mesh, folder = meshes.make(config.mesh), RunFolder(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(Screen(sys.stdout)))
        processes.by_first(lambda: str(stack.enter_context(folder).path))
        same = {f"the owner of {workdir}": folder.owner(), "the path of the workdir": str(folder.path.absolute())}
        processes.require_same(same, "one --workdir on a file system that every process sees")
        phases = Phases()
        stack.enter_context(Watchdog(phases, config.watchdog, folder.beat if processes.is_first() else None))
        run = stack.enter_context(Run(config, folder, mesh, overrides, phases))
        return run.train()


class Run:
    """The pieces of a run in its folder, and what happens beside the steps."""

    def __init__(self, config: schema.Config, folder: RunFolder, mesh: Mesh, overrides: dict, phases: Phases):
        self.config, self.folder, self.mesh, self.overrides = config, folder, mesh, overrides
        self.path = folder.path
        self.phases = phases
        self.feed = Feed(config, mesh, pathlib.Path(config.data.directory or self.path / "data"))
        self.telling = Telling(config, mesh, self.path)
        self.examiner = Examiner(config, mesh, self.feed, self.telling)
        self.stragglers = Stragglers(phases, self.telling.note, config.log.every_steps)
        self.keeper = Keeper(config, mesh, self.path, self.feed, self.telling, phases)
        self.replay_program = None

    def __enter__(self) -> "Run":
        self.telling.__enter__()
        self.ledger = Ledger(self.path / goodput.FILE if processes.is_first() else os.devnull, self.phases)
        return self

    def __exit__(self, *_) -> None:
        self.telling.__exit__()
        self.ledger.close()
        self.keeper.close()

    def train(self) -> Result:
        config = self.config
        self.keeper.clear_unfinished()
        state, position, num_skipped = self.keeper.restore()
        self.phases.step = position.step
        processes.by_first(self.keep_tokenizer)
        processes.by_first(self.record_start)  # only now: a refused start leaves no trace
        heldout, written = {}, []
        with StopSignals(STOPS) as signals:
            self.ledger.begin(position.step)
            self.telling.begin(position)
            if self.keeper.replicas is not None and (uncovered := self.keeper.replicas.uncovered()):
                self.telling.note(uncovered)
            self.telling.note(self.feed.epochs_line(position))
            state, position, num_skipped = self.make_steps(state, position, num_skipped, signals)
            finished = position.step >= config.train.num_steps
            if finished:
                signals.promise(ENDS)
            if finished and num_skipped:  # whether the weights are of use, no step has shown since they last moved
                heldout = self.evaluate(state, position, None)
                evaluate.require_useful(heldout.values(), num_skipped, position.step)
            if processes.by_first(lambda: position.step not in self.keeper.checkpoints.steps()):
                self.keeper.save(state, position, num_skipped)
            if finished:
                heldout = heldout or self.evaluate(state, position, None)
                written = self.write_samples(state, position)
            self.keeper.settle(state, position, num_skipped)
            self.keeper.forget_fast(position.step)
            self.ledger.write(position.step, ends=finished)
            self.telling.note(self.feed.epochs_line(position))
            how = "finished" if finished else "stopped, to be continued"
            if not finished and processes.by_first(self.folder.is_to_stop):
                how = f"stopped, to be continued when {self.path / STOP} is deleted,"
            self.telling.note(f"{how} at step {position.step}, saved in {self.path}")
        if finished:
            with self.phases.within("evaluate"):
                self.telling.end()
        rate, peak = self.telling.clock.median_rate(), self.telling.peak_flops_per_sec
        return Result(position, finished, heldout, self.feed.heldout_bytes, written, rate, peak)

    def make_steps(self, state: State, position: Position, num_skipped: int, signals: StopSignals) -> tuple[State, Position, int]:
        """Up to the last step or a signal; from before a spike of the loss once more, if it is to be gone back from."""

        def is_wished() -> bool:
            return signals.received or (processes.is_first() and self.folder.is_to_stop())  # process 0 looks, for all

        program, ended = self.phased(steps.make(self.config, self.mesh)), False
        while not ended:
            with self.feed.batches(position) as batches:
                awaited = self.phases.waiting(batches, "data")
                while not ended and not self.has_spike:
                    stop = processes.Agreement()
                    hooks = {
                        "before_step": self.replay,
                        "on_report": self.report,
                        "on_step": self.beside,
                        "should_stop": lambda stop=stop: self.has_spike or stop.agree(is_wished() or self.keeper.has_failed),
                    }
                    state, position, num_skipped = loop.run(
                        self.config, program, state, position, awaited, **hooks, num_skipped=num_skipped
                    )
                    with self.telling.clock.paused():
                        self.keeper.settle(state, position, num_skipped)
                    ended = position.step >= self.config.train.num_steps or stop.at_once(is_wished())
            if self.has_spike:
                del state
                state, position, num_skipped = self.go_back()
                ended = ended and position.step >= self.config.train.num_steps
        return state, position, num_skipped

    @property
    def has_spike(self) -> bool:
        """Whether there was a spike, and the run is to go back; the same in every process."""
        return self.config.guard.rollback_steps > 0 and bool(self.keeper.spikes.found)

    def go_back(self) -> tuple[State, Position, int]:
        """From before the spike that was found, round its samples; as `restore`."""
        skip = rollback.plan(self.config, self.feed.blend.skips, self.keeper.spikes.found)
        processes.by_first(lambda: rollback.record(self.path, skip, self.config.guard.max_rollbacks))
        fault.point("rollback")
        self.telling.note(f"the loss stands out from step {skip.spike} on: going back, and leaving out the samples {skip.draws}")
        with self.phases.within("init"):
            state, position, num_skipped = self.keeper.restore()
        self.ledger.begin(position.step)
        self.telling.begin(position)
        return state, position, num_skipped

    def phased(self, program: Callable) -> Callable:
        """The step, which is `compile` at its first call, and from then on `step`."""

        def step(*arguments):
            if self.phases.now != "init":
                return program(*arguments)
            self.phases.turn("compile")
            made = jax.block_until_ready(program(*arguments))
            self.phases.turn("step")
            return made

        return step

    def evaluate(self, state: State, position: Position, max_tokens: int | None) -> dict[str, evaluate.Heldout]:
        with self.phases.within("evaluate"):
            return self.examiner.evaluate(state, position, max_tokens)

    def write_samples(self, state: State, position: Position) -> list[tuple[str, str]]:
        with self.phases.within("evaluate"):
            return self.examiner.write_samples(state, position)

    def record_start(self) -> None:
        devices = f"{self.mesh.size} {self.mesh.devices.flat[0].device_kind}"
        if changed := self.folder.record(self.config, self.overrides, devices):
            print(f"the config differs from the last start of this run:\n{change_table(changed)}")
        if self.keeper.fast is None:
            fast.let_go(self.path)
        if self.config.mesh.pipe > 1 and self.config.pipeline.schedule.endswith(".csv"):
            self.keep_schedule(pathlib.Path(self.config.pipeline.schedule).read_bytes())

    def keep_schedule(self, table: bytes) -> None:
        """A copy of the user's own schedule in the run's folder, as the file that the config names may change."""
        kept = self.path / "schedule.csv"
        if kept.exists() and kept.read_bytes() != table:
            print(f"{self.config.pipeline.schedule} has changed since the last start of this run")
        files.write_synced(kept, table.decode())

    def keep_tokenizer(self) -> None:
        """A copy of the tokenizer in the run's folder; only after `restore` has found that it is the one of the checkpoints."""
        folder = self.path / "tokenizer"
        if not self.keeper.checkpoints.steps():
            shutil.rmtree(folder, ignore_errors=True)
        self.feed.tokenizer.save(folder)

    def report(self, report: loop.Report) -> None:
        """What is told of a step, when the next one is under way."""
        stands_out = not report.metrics["skipped"] and self.keeper.spikes.see(report.position.step, float(report.metrics["loss"]))
        self.telling.report(report, stands_out)
        if report.position.step % self.config.log.every_steps == 0:
            self.ledger.write(report.position.step)

    def replay(self, state: State, batch: loop.Batch, position: Position) -> None:
        """Before each step: whether its loss and gradients come out the same twice, if it is one that is tried."""
        every = self.config.guard.replay_every_steps
        if not every or (position.step + 1) % every:
            return
        jax.block_until_ready(state)
        is_first = self.replay_program is None
        with self.telling.clock.paused(), self.phases.within("compile" if is_first else "step"):
            self.replay_program = self.replay_program or replay.program(self.config, self.mesh)
            replay.require_same(self.replay_program, state, batch, position)

    def beside(self, state: State, report: loop.Report) -> None:
        """After each step: what is due at it."""
        config, position, step = self.config, report.position, report.position.step
        self.phases.step = step
        fault.point("step", step)
        last = step == config.train.num_steps
        if step % config.log.every_steps == 0:
            self.stragglers.look()

        def due(every: int) -> bool:
            return every > 0 and step % every == 0 and not last

        saving = config.checkpoint
        periods = (config.eval.every_steps, config.sample.every_steps, saving.every_steps, saving.fast_every_steps)
        if not any(map(due, (config.guard.replicas_every_steps, *periods))):
            return
        jax.block_until_ready(report.metrics)  # so that the pause below holds nothing of the step
        with self.telling.clock.paused():
            if due(config.guard.replicas_every_steps):
                self.keeper.compare_replicas(state, step)
            heldout_loss = math.nan
            if due(config.eval.every_steps):
                heldout_loss = evaluate.whole(self.evaluate(state, position, config.eval.max_tokens).values()).loss
            if due(config.sample.every_steps):
                self.write_samples(state, position)
            tier = self.keeper.checkpoints if due(saving.every_steps) else self.keeper.fast if due(saving.fast_every_steps) else None
            if tier and not report.metrics["skipped"]:
                spikes = self.keeper.spikes.after(step, float(report.metrics["loss"]))
                self.keeper.save(state, position, heldout_loss=heldout_loss, tier=tier, spikes=spikes)
                self.ledger.write(step)
