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
from mtnlg.checkpoint import Checkpoints
from mtnlg.core import config as configs
from mtnlg.core import fault, files, ranges, resuming, schema
from mtnlg.core.errors import DataError
from mtnlg.core.ranges import Range
from mtnlg.data import edits, skips
from mtnlg.parallel import arrangement, processes, timetable
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain import fast, rollback
from mtnlg.pretrain.examiner import Examiner
from mtnlg.pretrain.feed import Feed
from mtnlg.pretrain.telling import Telling
from mtnlg.run import environment, goodput
from mtnlg.run.folder import RunFolder, change_table
from mtnlg.run.goodput import Ledger
from mtnlg.run.phases import Phases
from mtnlg.run.screen import Screen
from mtnlg.run.stop import StopSignals
from mtnlg.train import evaluate, loop, replay
from mtnlg.train import state as states
from mtnlg.train import step as steps
from mtnlg.train.replicas import Replicas
from mtnlg.train.schedule import Position
from mtnlg.train.spike import Spikes
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
    """Trains until train.num_steps, SIGTERM or SIGINT (which save first), from the newest good checkpoint in `workdir` if there is one.

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
        run = stack.enter_context(Run(config, folder, mesh, overrides))
        return run.train()


class Run:
    """The pieces of a run in its folder, and what happens beside the steps."""

    def __init__(self, config: schema.Config, folder: RunFolder, mesh: Mesh, overrides: dict):
        self.config, self.folder, self.mesh, self.overrides = config, folder, mesh, overrides
        self.path = folder.path
        self.phases = Phases()
        self.feed = Feed(config, mesh, pathlib.Path(config.data.directory or self.path / "data"))
        self.telling = Telling(config, mesh, self.path)
        self.examiner = Examiner(config, mesh, self.feed, self.telling)
        keep = config.checkpoint
        self.checkpoints = Checkpoints(self.path / "checkpoints", keep.keep_last, keep.keep_every_steps, keep.keep_best)
        self.fast = fast.open_folder(config.checkpoint, self.path)
        self.spikes = Spikes(config.guard)
        self.replicas = Replicas(config, mesh) if config.guard.replicas_every_steps else None
        self.replay_program = None

    def __enter__(self) -> "Run":
        self.telling.__enter__()
        self.ledger = Ledger(self.path / goodput.FILE if processes.is_first() else os.devnull, self.phases)
        return self

    def __exit__(self, *_) -> None:
        self.telling.__exit__()
        self.ledger.close()
        for tier in self.tiers:
            tier.join()  # a save under way is finished whatever ended the run

    @property
    def tiers(self) -> list[Checkpoints]:
        """The checkpoints in the run's own folder, which last, and those on a fast disk, if there is one."""
        return [self.checkpoints, *([self.fast] if self.fast else [])]

    def train(self) -> Result:
        config = self.config
        for tier in self.tiers:
            processes.by_first(tier.clear_unfinished)
        state, position, num_skipped = self.restore()
        processes.by_first(self.keep_tokenizer)
        processes.by_first(self.record_start)  # only now: a refused start leaves no trace
        heldout, written = {}, []
        with StopSignals(STOPS) as signals:
            self.ledger.begin(position.step)
            self.telling.begin(position)
            if self.replicas is not None and (uncovered := self.replicas.uncovered()):
                self.telling.note(uncovered)
            self.telling.note(self.feed.epochs_line(position))
            state, position, num_skipped = self.make_steps(state, position, num_skipped, signals)
            finished = position.step >= config.train.num_steps
            if finished:
                signals.promise(ENDS)
            if finished and num_skipped:  # whether the weights are of use, no step has shown since they last moved
                heldout = self.evaluate(state, position, None)
                evaluate.require_useful(heldout.values(), num_skipped, position.step)
            if processes.by_first(lambda: position.step not in self.checkpoints.steps()):
                self.save(state, position, num_skipped)
            if finished:
                heldout = heldout or self.evaluate(state, position, None)
                written = self.write_samples(state, position)
            self.settle(state, position, num_skipped)
            if self.fast:
                processes.by_first(lambda: self.fast.forget(position.step))
            self.ledger.write(position.step, ends=finished)
            self.telling.note(self.feed.epochs_line(position))
            how = "finished" if finished else "stopped, to be continued"
            self.telling.note(f"{how} at step {position.step}, saved in {self.path}")
        if finished:
            self.telling.end()
        rate, peak = self.telling.clock.median_rate(), self.telling.peak_flops_per_sec
        return Result(position, finished, heldout, self.feed.heldout_bytes, written, rate, peak)

    def make_steps(self, state: State, position: Position, num_skipped: int, signals: StopSignals) -> tuple[State, Position, int]:
        """Up to the last step or a signal; from before a spike of the loss once more, if it is to be gone back from."""
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
                        "should_stop": lambda stop=stop: self.has_spike or stop.agree(signals.received or self.has_failed_save),
                    }
                    state, position, num_skipped = loop.run(
                        self.config, program, state, position, awaited, **hooks, num_skipped=num_skipped
                    )
                    with self.telling.clock.paused():
                        self.settle(state, position, num_skipped)
                    ended = position.step >= self.config.train.num_steps or stop.at_once(signals.received)
            if self.has_spike:
                del state
                state, position, num_skipped = self.go_back()
                ended = ended and position.step >= self.config.train.num_steps
        return state, position, num_skipped

    @property
    def has_spike(self) -> bool:
        """Whether there was a spike, and the run is to go back; the same in every process."""
        return self.config.guard.rollback_steps > 0 and bool(self.spikes.found)

    def go_back(self) -> tuple[State, Position, int]:
        """From before the spike that was found, round its samples; as `restore`."""
        skip = rollback.plan(self.config, self.feed.blend.skips, self.spikes.found)
        processes.by_first(lambda: rollback.record(self.path, skip, self.config.guard.max_rollbacks))
        fault.point("rollback")
        self.telling.note(f"the loss stands out from step {skip.spike} on: going back, and leaving out the samples {skip.draws}")
        state, position, num_skipped = self.restore()
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
        if self.fast is None:
            fast.let_go(self.path)
        if self.config.mesh.pipe > 1 and self.config.pipeline.schedule.endswith(".csv"):
            self.keep_schedule(pathlib.Path(self.config.pipeline.schedule).read_bytes())

    def keep_schedule(self, table: bytes) -> None:
        """A copy of the user's own schedule in the run's folder, as the file that the config names may change."""
        kept = self.path / "schedule.csv"
        if kept.exists() and kept.read_bytes() != table:
            print(f"{self.config.pipeline.schedule} has changed since the last start of this run")
        files.write_synced(kept, table.decode())

    def restore(self) -> tuple[State, Position, int]:
        """The newest good checkpoint of this run, else the weights of init.from, else fresh ones; the feed goes on from there.

        And how many steps, one after the other, were skipped just before.
        """
        fault.point("restore")
        config, rollbacks = self.config, processes.by_first(lambda: [str(one.draws) for one in rollback.read(self.path)])
        left_out = list(map(ranges.parse, rollbacks))
        found = self.newest_without(left_out)
        meta = checkpoint.meta(found) if found else {"samples": 0}
        self.feed.go_on(meta, str(found), left_out)
        self.spikes.restore(meta.get("spikes", {}))
        if found is None and config.init.from_ is not None:
            source = checkpoint.find(config.init.from_)
            checkpoint.require_good(source)
            self.require_same_tokenizer(source)
            resuming.require_same_network(_flat(checkpoint.meta(source)), self.identity, config.resume.allow, str(source))
            return states.make(config, self.mesh)._replace(params=pretrained.load_params(source, config, self.mesh)), Position(), 0
        if found is None:
            return states.make(config, self.mesh), Position(), 0
        self.require_same_tokenizer(found)
        self.require_same_run(found, meta)
        abstract = states.abstract_canonical(config, self.mesh)
        stored = State(*(checkpoint.load(found, part, getattr(abstract, part), config) for part in State._fields))
        state = arrangement.arranged(config, self.mesh, stored)
        return state, Position(*(meta[field] for field in Position._fields)), meta.get("skipped", 0)

    def newest_without(self, left_out: list[Range]) -> pathlib.Path | None:
        """The newest good checkpoint that has not read of these samples; newer ones are set aside as `STEP.rolledback`."""
        while found := checkpoint.newest_good([tier.directory for tier in self.tiers]):
            meta = checkpoint.meta(found)
            if not skips.is_overtaken(skips.from_json(meta.get("skips", ())), meta["samples"], left_out):
                return found
            processes.by_first(lambda found=found: checkpoint.set_aside(found, "rolledback"))
        return None

    def require_same_tokenizer(self, step_dir: pathlib.Path) -> None:
        if checkpoint.meta(step_dir)["tokenizer_sha256"] != self.feed.tokenizer.sha256:
            raise DataError(
                "the checkpoint was trained with another tokenizer",
                str(step_dir),
                f"--config.data.tokenizer={step_dir.parent.parent}/tokenizer",
            )

    def require_same_run(self, step_dir: pathlib.Path, meta: dict) -> None:
        """Raises ConfigError or DataError when going on from there would be another run, before anything is compiled or changed."""
        if not checkpoint.has(step_dir, "optimizer"):
            return  # a converted model, nothing to go on from: `load` says what to do with it
        for note in resuming.require_same_run(_flat(meta), self.identity, self.config.resume.allow, str(step_dir)):
            processes.by_first(lambda note=note: print(note))

    @property
    def identity(self) -> dict:
        """What a checkpoint is compared with."""
        return {"config": configs.to_flat(self.config), "versions": environment.versions(), "data": self.feed.fingerprint}

    def keep_tokenizer(self) -> None:
        """A copy of the tokenizer in the run's folder; only after `restore` has found that it is the one of the checkpoints."""
        folder = self.path / "tokenizer"
        if not self.checkpoints.steps():
            shutil.rmtree(folder, ignore_errors=True)
        self.feed.tokenizer.save(folder)

    def report(self, report: loop.Report) -> None:
        """What is told of a step, when the next one is under way."""
        stands_out = not report.metrics["skipped"] and self.spikes.see(report.position.step, float(report.metrics["loss"]))
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

    def compare_replicas(self, state: State, step: int) -> None:
        if self.replicas is not None:
            self.replicas.require_same(state, step)

    def beside(self, state: State, report: loop.Report) -> None:
        """After each step: what is due at it."""
        config, position, step = self.config, report.position, report.position.step
        fault.point("step", step)
        last = step == config.train.num_steps

        def due(every: int) -> bool:
            return every > 0 and step % every == 0 and not last

        saving = config.checkpoint
        every = (
            config.guard.replicas_every_steps,
            config.eval.every_steps,
            config.sample.every_steps,
            saving.every_steps,
            saving.fast_every_steps,
        )
        if not any(map(due, every)):
            return
        jax.block_until_ready(report.metrics)  # so that the pause below holds nothing of the step
        with self.telling.clock.paused():
            if due(config.guard.replicas_every_steps):
                self.compare_replicas(state, step)
            heldout_loss = math.nan
            if due(config.eval.every_steps):
                heldout_loss = evaluate.whole(self.evaluate(state, position, config.eval.max_tokens).values()).loss
            if due(config.sample.every_steps):
                self.write_samples(state, position)
            tier = self.checkpoints if due(saving.every_steps) else self.fast if due(saving.fast_every_steps) else None
            if tier and not report.metrics["skipped"]:
                spikes = self.spikes.after(step, float(report.metrics["loss"]))
                self.save(state, position, heldout_loss=heldout_loss, tier=tier, spikes=spikes)
                self.ledger.write(step)

    @property
    def has_failed_save(self) -> bool:
        """Whether a save under way has gone wrong already, in this process."""
        return any(tier.failed for tier in self.tiers)

    def settle(self, state: State, position: Position, num_skipped: int) -> None:
        """Until what is being saved is on disk; a save that failed for want of room is made once more, with the state of now."""
        for tier in self.tiers:
            with self.phases.within("save"):
                failure = tier.settle()
            if failure:
                self.save(state, position, num_skipped, tier=tier)

    def save(
        self,
        state: State,
        position: Position,
        num_skipped: int = 0,
        heldout_loss: float = math.nan,
        tier: Checkpoints | None = None,
        spikes: Spikes | None = None,
    ) -> None:
        """Begins to save. heldout_loss: of this state, if it was just found; tier: where, None: in the run's own folder.

        spikes: who has seen the losses up to this state; None: whoever sees those that are told.
        Raises TemporaryFailure when the save before failed for want of room, and this one fails too.
        """
        tier = tier or self.checkpoints
        meta = position._asdict() | self.identity | {"config": configs.to_nested(self.config), "skipped": num_skipped}
        meta |= {"tokenizer_sha256": self.feed.tokenizer.sha256, "blend": edits.to_json(self.feed.blend.edits, self.feed.names)}
        meta |= {"skips": skips.to_json(self.feed.blend.skips), "spikes": (spikes or self.spikes).to_json()}
        if math.isfinite(heldout_loss):
            meta["heldout_loss"] = heldout_loss
        with self.phases.within("save"):
            if failure := tier.settle():
                self.telling.note(f"a save has failed, and is tried once more with step {position.step}: {failure.what} ({failure.where})")
            self.compare_replicas(state, position.step)
            stored = arrangement.canonical(self.config, self.mesh, state)
            tier.save(position.step, stored.params, stored.optimizer, meta)


def _flat(meta: dict) -> dict:
    return meta | {"config": configs.flatten(meta["config"])}
