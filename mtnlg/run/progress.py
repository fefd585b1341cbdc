"""How far a run is: a bar on a terminal, plain lines in a log."""

import sys
import time

COLUMNS = {
    "loss": lambda value: f"loss {value:.4f}",
    "learning_rate": lambda value: f"lr {value:.1e}",
    "grad_norm": lambda value: f"gnorm {value:.2f}",
    "tokens_per_sec": lambda value: f"{value:,.0f} tok/s",
    "mfu": lambda value: f"MFU {100 * value:.1f} %",
}
BAR_COLUMNS = ("loss", "tokens_per_sec", "mfu")  # what fits beside a bar in 80 characters


class Progress:
    """Shows the steps of a run on `stream` (default: standard output). Close it, or use it in a `with` block.

    num_steps: steps of the whole run; first_step: steps already done before this start; log_every_steps: distance of plain lines; unit:
    what a step is called.
    """

    def __init__(
        self, num_steps: int, first_step: int = 0, log_every_steps: int = 10, stream=None, clock=time.monotonic, unit: str = "step"
    ):
        self._num_steps, self._log_every_steps, self._clock, self._unit = num_steps, log_every_steps, clock, unit
        self._stream = stream or sys.stdout
        self._timed_from = None
        self._bar = _bar(num_steps, first_step, self._stream, unit) if self._stream.isatty() else None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the bar as it stands and goes to the next line."""
        if self._bar:
            self._bar.close()

    def update(self, step: int, **values) -> None:
        """`step` steps are done. Of `values`, those named in COLUMNS are shown: loss in nats/token, mfu as a fraction of one."""
        remaining_secs = self._remaining_secs(step)
        eta = [] if remaining_secs is None else [f"eta {format_secs(remaining_secs)}"]
        if self._bar:
            self._bar.set_description_str("  ".join(_shown(BAR_COLUMNS, values) + eta), refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._log_every_steps == 0 or step == self._num_steps:
            self.note("  ".join([f"{self._unit} {step}/{self._num_steps}"] + _shown(COLUMNS, values) + eta))

    def note(self, text: str) -> None:
        """Prints a line of its own, above the bar if there is one."""
        if self._bar:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _remaining_secs(self, step: int) -> float | None:
        """At the mean pace since the first update, so that compiling does not count; None before a second update."""
        if self._timed_from is None:
            self._timed_from = step, self._clock()
        first, started = self._timed_from
        return (self._num_steps - step) * (self._clock() - started) / (step - first) if step > first else None


def format_secs(secs: float) -> str:
    """`02:31` (minutes, seconds) or, from an hour on, `27:02:31`."""
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes:02}:{seconds:02}"


def _shown(names, values: dict) -> list[str]:
    return [COLUMNS[name](values[name]) for name in names if values.get(name) is not None]


def _bar(num_steps: int, first_step: int, stream, unit: str):
    from tqdm import tqdm

    layout = unit + " {n_fmt}/{total_fmt} |{bar}| {desc}"
    return tqdm(total=num_steps, initial=first_step, file=stream, dynamic_ncols=True, bar_format=layout)
