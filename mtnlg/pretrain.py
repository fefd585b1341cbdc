"""A whole training run: data, model, loop, checkpoints, reports, in one folder. Started again with the same folder, it goes on."""

import contextlib
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple, TextIO

import jax
import numpy as np
from jax.sharding import Mesh

from mtnlg import checkpoint, lm, pretrained
from mtnlg.checkpoint import Checkpoints
from mtnlg.core import config as configs
from mtnlg.core import fault, files, schema
from mtnlg.core.errors import DataError
from mtnlg.corpus import build, manifest
from mtnlg.corpus.manifest import Prepared
from mtnlg.data import edits, epochs
from mtnlg.data import tokenizer as tokenizers
from mtnlg.data.edits import Edit, EditedBlend
from mtnlg.data.loader import Heldout, Loader, Prefetcher
from mtnlg.data.store import Store
from mtnlg.infer.engine import Engine
from mtnlg.model import count
from mtnlg.parallel import arrangement, processes, timetable
from mtnlg.parallel import mesh as meshes
from mtnlg.run import curves, environment
from mtnlg.run.clock import StepClock
from mtnlg.run.folder import RunFolder, change_table
from mtnlg.run.metrics import Metrics
from mtnlg.run.metrics import read as read_metrics
from mtnlg.run.progress import Progress
from mtnlg.run.screen import Screen
from mtnlg.run.stop import StopSignals
from mtnlg.train import evaluate, loop, peak, schedule
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
    """The pieces of a run in its folder, and what happens beside the steps: reports, held-out loss, samples, checkpoints."""

    def __init__(self, config: schema.Config, folder: RunFolder, mesh: Mesh, overrides: dict):
        self.config, self.folder, self.mesh, self.overrides = config, folder, mesh, overrides
        self.path = path = folder.path
        self.prepared = self.prepare(pathlib.Path(config.data.directory or path / "data"))
        self.tokenizer = tokenizers.load(self.prepared.tokenizer)
        same = {"the prepared text": str(self.prepared), "the tokenizer": self.tokenizer.sha256}
        processes.require_same(same, "a data.directory on a file system that every process sees")
        lm.require_room_for_samples(config, self.tokenizer)
        self.checkpoints = Checkpoints(path / "checkpoints", config.checkpoint.keep_last)
        self.engine: Engine | None = None
        self.peak_flops_per_sec = self.measure_peak()
        self.flops_per_token = count.flops_per_token(config.model)
        self.score = evaluate.program(config, mesh)
        self.clock = StepClock()

    def __enter__(self) -> "Run":
        self.metrics = Metrics(self.record_of("metrics"), tensorboard=self.config.log.tensorboard and processes.is_first())
        self.samples = Metrics(self.record_of("samples"))
        return self

    def __exit__(self, *_) -> None:
        self.metrics.close()
        self.samples.close()
        self.checkpoints.join()  # a save under way is finished whatever ended the run

    def train(self) -> Result:
        config = self.config
        processes.by_first(self.checkpoints.clear_unfinished)
        state, position = self.restore()
        processes.by_first(self.keep_tokenizer)
        processes.by_first(self.record_start)  # only now: a refused start leaves no trace
        self.metrics.cut(position.step)
        self.samples.cut(position.step)
        last, heldout, written = config.train.num_steps, {}, []
        stop = processes.Agreement()
        with contextlib.ExitStack() as stack:
            screen = stack.enter_context(self.screen())
            self.progress = progress = stack.enter_context(Progress(last, position.step, config.log.every_steps, screen))
            signals = stack.enter_context(StopSignals(STOPS))
            progress.note(self.headline(position))
            progress.note(self.epochs_line(position))
            with self.batches(position) as batches:
                program = steps.make(config, self.mesh)
                hooks = {
                    "on_report": self.report,
                    "on_step": self.beside,
                    "should_stop": lambda: stop.agree(signals.received or self.checkpoints.failed),
                }
                state, position, num_skipped = loop.run(config, program, state, position, batches, **hooks, num_skipped=self.num_skipped)
            finished = position.step >= last
            if finished:
                signals.promise(ENDS)
            if finished and num_skipped:  # whether the weights are of use, no step has shown since they last moved
                heldout = self.evaluate(state, position, None)
                evaluate.require_useful(heldout.values(), num_skipped, position.step)
            self.checkpoints.wait()
            if processes.by_first(lambda: position.step not in self.checkpoints.steps()):
                self.save(state, position, num_skipped)
            if finished:
                heldout = heldout or self.evaluate(state, position, None)
                written = self.write_samples(state, position)
            self.checkpoints.wait()
            progress.note(self.epochs_line(position))
            progress.note(f"{'finished' if finished else 'stopped, to be continued'} at step {position.step}, saved in {self.path}")
        if finished:
            processes.by_first(self.draw_curves)
            self.peak_flops_per_sec = max(self.peak_flops_per_sec, self.measure_peak())
        num_bytes = sum(source.heldout.num_bytes for source in self.prepared.sources)
        whole_peak = peak.of_mesh(self.peak_flops_per_sec, self.mesh)
        return Result(position, finished, heldout, num_bytes, written, self.clock.median_rate(), whole_peak)

    def prepare(self, directory: pathlib.Path) -> Prepared:
        fault.point("prepare")
        processes.by_first(lambda: str(build.prepare(self.config, directory)))
        return manifest.load(directory)

    def measure_peak(self) -> float:
        return processes.by_first(lambda: peak.best_gemm_flops_per_sec(self.config.train.compute_dtype))

    def record_of(self, name: str) -> str:
        """The file that lines about this run go to; those of other processes than the first go nowhere."""
        return str(self.path / f"{name}.jsonl") if processes.is_first() else os.devnull

    def screen(self) -> contextlib.AbstractContextManager[TextIO]:
        """Standard output; of other processes than the first, nothing is to be seen."""
        return contextlib.nullcontext(sys.stdout) if processes.is_first() else open(os.devnull, "w")

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

    def draw_curves(self) -> None:
        picture = curves.draw(self.path / "metrics.jsonl")
        samples = f"samples in {self.path / 'samples.jsonl'}; " if self.config.sample.prompts else ""
        print(f"{picture}; {samples}python -m mtnlg generate --workdir={self.path} --prompt=TEXT")

    def headline(self, position: Position) -> str:
        parameters = count.num_params(self.config.model)
        tokens = schedule.final_position(self.config).tokens
        begin = f"the weights of {self.config.init.from_}" if self.config.init.from_ else "random weights"
        origin = f"goes on at step {position.step}" if position.step else f"starts from {begin}"
        if position.step >= self.config.train.num_steps:
            origin = f"was finished at step {position.step} already (a larger --config.train.num_steps goes on)"
        device = jax.devices()[0]
        return (
            f"{self.config.name}: {parameters:,} parameters, {tokens:,} tokens in {self.config.train.num_steps} steps, {origin}, on "
            f"{self.mesh.size} {device.device_kind}; best matrix product {self.peak_flops_per_sec / 1e9:,.0f} GFLOP/s in "
            f"{self.config.train.compute_dtype}; MFU counts 6N + 12LHQT FLOPs a token against it; the first step waits for the compiler"
        )

    def restore(self) -> tuple[State, Position]:
        """The newest good checkpoint of this run, else the weights of init.from, else fresh ones; and `self.blend` as it goes on."""
        fault.point("restore")
        config, found = self.config, self.checkpoints.newest_good()
        meta = checkpoint.meta(found) if found else {"samples": 0}
        self.num_skipped = meta.get("skipped", 0)
        self.blend = self.blend_from(meta, str(found))
        if found is None and config.init.from_ is not None:
            source = checkpoint.find(config.init.from_)
            checkpoint.require_good(source)
            self.require_same_tokenizer(source)
            return states.make(config, self.mesh)._replace(params=pretrained.load_params(source, config, self.mesh)), Position()
        if found is None:
            return states.make(config, self.mesh), Position()
        self.require_same_tokenizer(found)
        abstract = states.abstract_canonical(config, self.mesh)
        stored = State(*(checkpoint.load(found, part, getattr(abstract, part), config) for part in State._fields))
        state = arrangement.arranged(config, self.mesh, stored)
        return state, Position(*(meta[field] for field in Position._fields))

    def blend_from(self, meta: dict, where: str) -> EditedBlend:
        """The blend of a checkpoint (of none: {'samples': 0}) from its sample on: with other weights in the config, one edit more."""
        names, data = [source.name for source in self.prepared.sources], self.config.data
        by_tokens = tuple(source.train.num_tokens for source in self.prepared.sources)
        if "blend" in meta:
            recorded = edits.from_json(meta["blend"], names, where)
        else:  # none, or one from before edits were kept, whose weights are in its config
            before = configs.flatten(meta["config"])["data.weights"] if "config" in meta else ()
            recorded = (Edit(0, tuple(before or by_tokens)),)
        return EditedBlend(edits.go_on(recorded, meta["samples"], data.weights or by_tokens, data.order))

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the text of each source has been read, by tokens, when so many samples are consumed."""
        sources = {source.name: source.train.num_tokens for source in self.prepared.sources}
        readings = epochs.of_run([*sources], [*sources.values()], self.blend, samples, self.config.model.seq_len)
        return {one.name: one.epochs for one in readings}

    def epochs_line(self, position: Position) -> str:
        now, last = self.epochs(position.samples), self.epochs(schedule.final_position(self.config).samples)
        edited = [f"; other weights from sample {edit.first} on" for edit in self.blend.edits[1:]]
        return f"epochs: {', '.join(f'{name} {now[name]:.2f} of {last[name]:.2f}' for name in now)}{''.join(edited)}"

    def require_same_tokenizer(self, step_dir: pathlib.Path) -> None:
        if checkpoint.meta(step_dir)["tokenizer_sha256"] != self.tokenizer.sha256:
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
        self.tokenizer.save(folder)

    @contextlib.contextmanager
    def batches(self, position: Position) -> Iterator[Iterator[loop.Batch]]:
        """Batches from `position` on, made one step ahead in a thread."""
        config, model, train = self.config, self.config.model, self.config.train
        stores = [Store(source.train.prefix, vocab_size=model.vocab_size) for source in self.prepared.sources]
        loader = Loader(
            stores,
            self.blend,
            seq_len=model.seq_len,
            seed=config.seed,
            order=config.data.order,
            num_samples=schedule.final_position(config).samples,
            **self.documents(),
        )
        rows = config.microbatch_rows
        most, own = train.batch_size // rows, meshes.local_rows(self.mesh, rows)

        def make(samples: int) -> dict:
            """Of every microbatch, the rows that this process's devices hold."""
            size = schedule.batch_size(train, samples)
            numbers = np.arange(samples, samples + size).reshape(-1, rows)[:, own]
            microbatches = {name: a.reshape(*numbers.shape, model.seq_len) for name, a in loader.batch(numbers.ravel()).items()}
            return {name: np.pad(a, [(0, most - len(a)), (0, 0), (0, 0)]) for name, a in microbatches.items()}

        def starts() -> Iterator[int]:
            samples = position.samples
            while True:
                yield samples
                samples += schedule.batch_size(train, samples)

        def on_mesh(prefetched) -> Iterator[loop.Batch]:
            for step, (samples, fields) in enumerate(prefetched, position.step + 1):
                if fault.point("batch", step):
                    fields["weights"] = np.full_like(fields["weights"], np.nan)
                size = schedule.batch_size(train, samples)
                table = timetable.on_mesh(config, self.mesh, size // rows)
                yield loop.Batch(meshes.put_rows(self.mesh, fields, rows), size // rows, size, table)

        with Prefetcher(lambda samples: (samples, make(samples)), starts()) as prefetched:
            yield on_mesh(prefetched)

    def documents(self) -> dict:
        """How documents inside a sequence are told apart, in training and scoring alike."""
        return {"reset_at_documents": self.config.data.reset_at_documents, "eod_id": self.tokenizer.eod_id}

    def report(self, report: loop.Report) -> None:
        step, values = report.position.step, report.metrics
        self.clock.step_done(report.position.tokens)
        if skipped := {"skipped": True} if values["skipped"] else {}:
            self.progress.note(
                f"step {step} is skipped, the weights stay as they were: loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
            )
        elif step % self.config.log.every_steps and step != self.config.train.num_steps:
            return
        shown = {"loss": float(values["loss"]), "learning_rate": report.learning_rate, "grad_norm": float(values["grad_norm"])}
        rate = self.clock.median_rate(self.config.log.every_steps)
        if math.isfinite(rate):
            shown |= {"tokens_per_sec": rate, "mfu": rate * self.flops_per_token / peak.of_mesh(self.peak_flops_per_sec, self.mesh)}
        norms = {f"{kind}_norm/{name}": float(v) for kind in ("grad", "param") for name, v in values.get("norms", {}).get(kind, {}).items()}
        scales = values.get("norms", {}).get("activation", ())
        norms |= {f"activation_rms/block_{layer}": float(v) for layer, v in enumerate(scales)}
        self.metrics.write(step=step, tokens=report.position.tokens, samples=report.position.samples, **shown, **skipped, **norms)
        self.progress.update(step, **shown)

    def beside(self, state: State, report: loop.Report) -> None:
        """After each step: what is due at it."""
        config, position, step = self.config, report.position, report.position.step
        fault.point("step", step)
        last = step == config.train.num_steps

        def due(every: int) -> bool:
            return every > 0 and step % every == 0 and not last

        if not any(due(every) for every in (config.eval.every_steps, config.sample.every_steps, config.checkpoint.every_steps)):
            return
        jax.block_until_ready(report.metrics)  # so that the pause below holds nothing of the step
        with self.clock.paused():
            if due(config.eval.every_steps):
                self.evaluate(state, position, config.eval.max_tokens)
            if due(config.sample.every_steps):
                self.write_samples(state, position)
            if due(config.checkpoint.every_steps) and not report.metrics["skipped"]:
                self.save(state, position)

    def evaluate(self, state: State, position: Position, max_tokens: int | None) -> dict[str, evaluate.Heldout]:
        """Held-out loss of every source and of all together, in metrics and on the screen."""
        fault.point("evaluate", position.step)
        rows, found = self.config.microbatch_rows * self.config.mesh.pipe, {}  # a microbatch for every stage
        read = {"seq_len": self.config.model.seq_len, **self.documents()}
        for source in self.prepared.sources:
            heldout = Heldout(Store(source.heldout.prefix, vocab_size=self.config.model.vocab_size), **read)
            found[source.name] = evaluate.heldout(self.score, self.mesh, state.params, heldout.batches(rows, max_tokens))
        whole = evaluate.Heldout(sum(h.nats for h in found.values()), sum(h.num_tokens for h in found.values()))
        values = {"heldout_loss": whole.loss} | ({f"heldout_loss/{name}": h.loss for name, h in found.items()} if len(found) > 1 else {})
        if not self.is_recorded("metrics", position, "heldout_loss"):
            epochs_read = {f"epochs/{name}": value for name, value in self.epochs(position.samples).items()}
            self.metrics.write(step=position.step, tokens=position.tokens, **values, **epochs_read)
        self.progress.note(f"step {position.step}: held-out loss {', '.join(f'{value:.4f}' for value in values.values())} nats per token")
        return found

    def write_samples(self, state: State, position: Position) -> list[tuple[str, str]]:
        """A continuation of every prompt of the config."""
        sample = self.config.sample
        if not sample.prompts:
            return []
        if self.engine is None:
            self.engine = Engine(self.config, self.mesh, state.params, self.tokenizer.vocab_size)
        else:
            self.engine.load(state.params)
        model, written = lm.LanguageModel(self.tokenizer, self.engine), []
        for number, prompt in enumerate(sample.prompts):
            settings = {"max_new_tokens": sample.max_new_tokens, "temperature": sample.temperature, "top_p": sample.top_p}
            seed = (self.config.seed + number) % 2**32
            written.append((prompt, model.complete(prompt, seed=seed, **settings)))
        self.engine.unload()  # training needs the room
        if not self.is_recorded("samples", position, "text"):
            for prompt, text in written:
                self.samples.write(step=position.step, prompt=prompt, text=text)
        return written

    def is_recorded(self, name: str, position: Position, field: str) -> bool:
        """Whether `NAME.jsonl` has a line of this step with this field: a finished run that is started again adds nothing."""
        return any(line["step"] == position.step and field in line for line in read_metrics(self.record_of(name)))

    def save(self, state: State, position: Position, num_skipped: int = 0) -> None:
        meta = position._asdict() | {"config": configs.to_nested(self.config), "tokenizer_sha256": self.tokenizer.sha256}
        meta["skipped"] = num_skipped
        meta["blend"] = edits.to_json(self.blend.edits, [source.name for source in self.prepared.sources])
        stored = arrangement.canonical(self.config, self.mesh, state)
        self.checkpoints.save(position.step, stored.params, stored.optimizer, meta)
