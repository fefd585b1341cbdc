"""What a run tells: to people on the screen, and as lines in its folder. In a job process 0 alone is heard."""

import contextlib
import math
import os
import pathlib
import sys
from typing import TextIO

import jax
from jax.sharding import Mesh

from mtnlg.core import schema
from mtnlg.model import count
from mtnlg.parallel import processes
from mtnlg.run import curves
from mtnlg.run.clock import StepClock
from mtnlg.run.metrics import Metrics
from mtnlg.run.metrics import read as read_metrics
from mtnlg.run.progress import Progress
from mtnlg.train import loop, peak, schedule
from mtnlg.train.schedule import Position


class Telling:
    """Metrics, samples and progress of a run, in its `with` block, and how fast it is."""

    def __init__(self, config: schema.Config, mesh: Mesh, path: pathlib.Path):
        self._config, self._mesh, self._path = config, mesh, path
        self._stack, self._shown = contextlib.ExitStack(), contextlib.ExitStack()
        self._flops_per_token = count.flops_per_token(config.model)
        self._best_flops_per_sec = 0.0
        self.clock = StepClock()

    def __enter__(self) -> "Telling":
        with self._stack as stack:
            tensorboard = self._config.log.tensorboard and processes.is_first()
            self._metrics = stack.enter_context(Metrics(self._file("metrics"), tensorboard))
            self._samples = stack.enter_context(Metrics(self._file("samples")))
            stack.callback(self._shown.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    @property
    def peak_flops_per_sec(self) -> float:
        """Of the whole mesh: what MFU is counted against."""
        return peak.of_mesh(self._best_flops_per_sec, self._mesh)

    def begin(self, position: Position) -> None:
        """Forgets what was told of later steps, and shows where the run is: at a start, and when it goes back."""
        self._shown.close()
        self.clock = StepClock()
        self._best_flops_per_sec = self._best_flops_per_sec or self._measure_peak()  # a start that is refused has no need of it
        self._metrics.cut(position.step)
        self._samples.cut(position.step)
        screen = self._shown.enter_context(_screen())
        progress = Progress(self._config.train.num_steps, position.step, self._config.log.every_steps, screen)
        self._progress = self._shown.enter_context(progress)
        self.note(self._headline(position))

    def end(self) -> None:
        """Draws the curves of a finished run, and measures once more what it could have been at best."""
        self._progress.close()
        processes.by_first(self._draw_curves)
        self._best_flops_per_sec = max(self._best_flops_per_sec, self._measure_peak())

    def note(self, text: str) -> None:
        """A line for people."""
        self._progress.note(text)

    def report(self, report: loop.Report, stands_out: bool) -> None:
        """A step, if it is its turn, was skipped, or if its loss stands out."""
        step, values = report.position.step, report.metrics
        self.clock.step_done(report.position.tokens)
        marks = {name: True for name, is_so in (("skipped", values["skipped"]), ("spike", stands_out)) if is_so}
        if values["skipped"]:
            loss, norm = values["loss"], values["grad_norm"]
            why = f"the gradients overflow at a loss scale of {values['loss_scale']:g}" if values.get("overflows") else None
            why = why or f"loss {loss:.4g}, gradient norm {norm:.4g}"
            self.note(f"step {step} is skipped, the weights stay as they were: {why}")
        if not marks and step % self._config.log.every_steps and step != self._config.train.num_steps:
            return
        shown = {"loss": float(values["loss"]), "learning_rate": report.learning_rate, "grad_norm": float(values["grad_norm"])}
        shown |= {"loss_scale": float(values["loss_scale"])} if "loss_scale" in values else {}
        rate = self.clock.median_rate(self._config.log.every_steps)
        if math.isfinite(rate):
            shown |= {"tokens_per_sec": rate, "mfu": rate * self._flops_per_token / self.peak_flops_per_sec}
        norms = {f"{kind}_norm/{name}": float(v) for kind in ("grad", "param") for name, v in values.get("norms", {}).get(kind, {}).items()}
        scales = values.get("norms", {}).get("activation", ())
        norms |= {f"activation_rms/block_{layer}": float(v) for layer, v in enumerate(scales)}
        self._metrics.write(step=step, tokens=report.position.tokens, samples=report.position.samples, **shown, **marks, **norms)
        self._progress.update(step, **shown)

    def heldout(self, position: Position, losses: dict[str, float], epochs: dict[str, float]) -> None:
        """The held-out losses after a step, the whole one first, in nats per token, and how often each source was read."""
        if not self._is_told("metrics", position, "heldout_loss"):
            self._metrics.write(step=position.step, tokens=position.tokens, **losses, **epochs)
        self.note(f"step {position.step}: held-out loss {', '.join(f'{value:.4f}' for value in losses.values())} nats per token")

    def samples(self, position: Position, written: list[tuple[str, str]]) -> None:
        """(prompt, text) after a step."""
        if not self._is_told("samples", position, "text"):
            for prompt, text in written:
                self._samples.write(step=position.step, prompt=prompt, text=text)

    def _is_told(self, name: str, position: Position, field: str) -> bool:
        """Whether `NAME.jsonl` has a line of this step with this field: a finished run that is started again adds nothing."""
        return any(line["step"] == position.step and field in line for line in read_metrics(self._file(name)))

    def _file(self, name: str) -> str:
        """The file that lines about this run go to; those of other processes than the first go nowhere."""
        return str(self._path / f"{name}.jsonl") if processes.is_first() else os.devnull

    def _measure_peak(self) -> float:
        return processes.by_first(lambda: peak.best_gemm_flops_per_sec(self._config.train.compute_dtype))

    def _draw_curves(self) -> None:
        picture = curves.draw(self._path / "metrics.jsonl")
        samples = f"samples in {self._path / 'samples.jsonl'}; " if self._config.sample.prompts else ""
        print(f"{picture}; {samples}python -m mtnlg generate --workdir={self._path} --prompt=TEXT")

    def _headline(self, position: Position) -> str:
        config = self._config
        parameters, tokens = count.num_params(config.model), schedule.final_position(config).tokens
        begin = f"the weights of {config.init.from_}" if config.init.from_ else "random weights"
        origin = f"goes on at step {position.step}" if position.step else f"starts from {begin}"
        if position.step >= config.train.num_steps:
            origin = f"was finished at step {position.step} already (a larger --config.train.num_steps goes on)"
        return (
            f"{config.name}: {parameters:,} parameters, {tokens:,} tokens in {config.train.num_steps} steps, {origin}, on "
            f"{self._mesh.size} {jax.devices()[0].device_kind}; best matrix product {self._best_flops_per_sec / 1e9:,.0f} GFLOP/s in "
            f"{config.train.compute_dtype}; MFU counts 6N + 12LHQT FLOPs a token against it; the first step waits for the compiler"
        )


def _screen() -> contextlib.AbstractContextManager[TextIO]:
    """Standard output; of other processes than the first, nothing is to be seen."""
    return contextlib.nullcontext(sys.stdout) if processes.is_first() else open(os.devnull, "w")
