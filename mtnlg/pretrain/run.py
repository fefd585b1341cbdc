"""A whole training run: data, model, loop, checkpoints, reports, in one folder. Started again with the same folder, it goes on."""

import contextlib
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
from mtnlg.core import fault, files, schema
from mtnlg.core.errors import DataError
from mtnlg.data import edits
from mtnlg.parallel import arrangement, processes, timetable
from mtnlg.parallel import mesh as meshes
from mtnlg.pretrain.examiner import Examiner
from mtnlg.pretrain.feed import Feed
from mtnlg.pretrain.stragglers import Stragglers
from mtnlg.pretrain.telling import Telling
from mtnlg.run import environment
from mtnlg.run.folder import STOP, RunFolder, change_table
from mtnlg.run.phases import Phases
from mtnlg.run.screen import Screen
from mtnlg.run.stop import StopSignals
from mtnlg.run.watchdog import Watchdog
from mtnlg.train import evaluate, loop
from mtnlg.train import state as states
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
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.checkpoint.keep_last)

    def __enter__(self) -> "Run":
        self.telling.__enter__()
        return self

    def __exit__(self, *_) -> None:
        self.telling.__exit__()
        with self.phases.within("save"):
            self.checkpoints.join()  # a save under way is finished whatever ended the run

    def train(self) -> Result:
        config = self.config
        processes.by_first(self.checkpoints.clear_unfinished)
        state, position, num_skipped = self.restore()
        self.phases.step = position.step
        processes.by_first(self.keep_tokenizer)
        processes.by_first(self.record_start)  # only now: a refused start leaves no trace
        heldout, written, stop = {}, [], processes.Agreement()
        with StopSignals(STOPS) as signals:
            self.telling.begin(position)
            self.telling.note(self.feed.epochs_line(position))
            with self.feed.batches(position) as batches:
                program = self.phased(steps.make(config, self.mesh))
                hooks = {
                    "on_report": self.telling.report,
                    "on_step": self.beside,
                    "should_stop": lambda: stop.agree(signals.received or self.is_to_stop() or self.checkpoints.failed),
                }
                awaited = self.phases.waiting(batches, "data")
                state, position, num_skipped = loop.run(config, program, state, position, awaited, **hooks, num_skipped=num_skipped)
            finished = position.step >= config.train.num_steps
            if finished:
                signals.promise(ENDS)
            if finished and num_skipped:  # whether the weights are of use, no step has shown since they last moved
                heldout = self.evaluate(state, position, None)
                evaluate.require_useful(heldout.values(), num_skipped, position.step)
            with self.phases.within("save"):
                self.checkpoints.wait()
            if processes.by_first(lambda: position.step not in self.checkpoints.steps()):
                self.save(state, position, num_skipped)
            if finished:
                heldout = heldout or self.evaluate(state, position, None)
                written = self.write_samples(state, position)
            with self.phases.within("save"):
                self.checkpoints.wait()
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

    def is_to_stop(self) -> bool:
        """Whether a file says so; process 0 looks, for all."""
        return processes.is_first() and self.folder.is_to_stop()

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
        if changed := self.folder.record(self.config, self.overrides):
            print(f"the config differs from the last start of this run:\n{change_table(changed)}")
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
        config, found = self.config, self.checkpoints.newest_good()
        meta = checkpoint.meta(found) if found else {"samples": 0}
        self.feed.go_on(meta, str(found))
        if found is None and config.init.from_ is not None:
            source = checkpoint.find(config.init.from_)
            checkpoint.require_good(source)
            self.require_same_tokenizer(source)
            return states.make(config, self.mesh)._replace(params=pretrained.load_params(source, config, self.mesh)), Position(), 0
        if found is None:
            return states.make(config, self.mesh), Position(), 0
        self.require_same_tokenizer(found)
        abstract = states.abstract_canonical(config, self.mesh)
        stored = State(*(checkpoint.load(found, part, getattr(abstract, part), config) for part in State._fields))
        state = arrangement.arranged(config, self.mesh, stored)
        return state, Position(*(meta[field] for field in Position._fields)), meta.get("skipped", 0)

    def require_same_tokenizer(self, step_dir: pathlib.Path) -> None:
        if checkpoint.meta(step_dir)["tokenizer_sha256"] != self.feed.tokenizer.sha256:
            raise DataError(
                "the checkpoint was trained with another tokenizer",
                str(step_dir),
                f"--config.data.tokenizer={step_dir.parent.parent}/tokenizer",
            )

    def keep_tokenizer(self) -> None:
        """A copy of the tokenizer in the run's folder; only after `restore` has found that it is the one of the checkpoints."""
        folder = self.path / "tokenizer"
        if not self.checkpoints.steps():
            shutil.rmtree(folder, ignore_errors=True)
        self.feed.tokenizer.save(folder)

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

        if not any(due(every) for every in (config.eval.every_steps, config.sample.every_steps, config.checkpoint.every_steps)):
            return
        jax.block_until_ready(report.metrics)  # so that the pause below holds nothing of the step
        with self.telling.clock.paused():
            if due(config.eval.every_steps):
                self.evaluate(state, position, config.eval.max_tokens)
            if due(config.sample.every_steps):
                self.write_samples(state, position)
            if due(config.checkpoint.every_steps) and not report.metrics["skipped"]:
                self.save(state, position)

    def save(self, state: State, position: Position, num_skipped: int = 0) -> None:
        meta = position._asdict() | {"config": configs.to_nested(self.config), "tokenizer_sha256": self.feed.tokenizer.sha256}
        meta["skipped"] = num_skipped
        meta["blend"] = edits.to_json(self.feed.blend.edits, self.feed.names)
        with self.phases.within("save"):
            stored = arrangement.canonical(self.config, self.mesh, state)
            self.checkpoints.save(position.step, stored.params, stored.optimizer, meta)
