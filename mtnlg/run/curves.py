"""Pictures of a run's metrics: `curves.png`, and a line of blocks for a terminal."""

import io
import itertools
import pathlib

import numpy as np

from mtnlg.core.files import write_atomic
from mtnlg.run import metrics

SIZE_INCHES, DOTS_PER_INCH = (10, 7.5), 120
_SMOOTHING = 100  # the smoothed loss averages this part of the run's points to each side
_BLUE, _ORANGE, _GREEN, _PURPLE, _GREY = "#2f6db3", "#d9622b", "#3a8f5c", "#7b5aa6", "#767676"
STYLE = {
    "font.size": 10,
    "axes.spines.right": False,
    "axes.edgecolor": "#b0b0b0",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "xtick.color": "#b0b0b0",
    "xtick.labelcolor": "#404040",
    "ytick.color": "#b0b0b0",
    "ytick.labelcolor": "#404040",
    "axes.labelcolor": "#404040",
    "legend.edgecolor": "none",
    "legend.labelcolor": "#404040",
}


def draw(metrics_path, references: dict[str, float] | None = None) -> pathlib.Path:
    """Draws `curves.png` beside a metrics file and returns its path.

    Reads the metrics `loss`, `heldout_loss` (or `heldout_loss/SOURCE`), `learning_rate`, `grad_norm`, and `tokens` (trained on so far).
    references: losses to compare with, {name: nats/token}, as dashed lines.
    Raises MissingInput, DataError (from reading), TemporaryFailure, CannotWrite.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    lines = metrics.read(metrics_path)
    path = pathlib.Path(metrics_path).with_name("curves.png")
    with matplotlib.rc_context(STYLE):
        figure = Figure(SIZE_INCHES, DOTS_PER_INCH, layout="constrained")
        losses, rate, norm = figure.subplots(3, sharex=True, height_ratios=(4, 1, 1))
        _draw_losses(losses, lines, references or {})
        _draw_series(rate, lines, "learning_rate", "learning\nrate", _GREEN)
        _draw_series(norm, lines, "grad_norm", "gradient\nnorm", _PURPLE)
        norm.set_xlabel("steps")
        norm.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        norm.set_xlim(0, 1.01 * max([1, *(line["step"] for line in lines)]))
        _add_tokens_axis(losses, lines)
        figure.align_ylabels()
        image = io.BytesIO()
        figure.savefig(image)
    write_atomic(path, image.getvalue())
    return path


def _series(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, float), np.array(values, float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean around each point, over a window that shrinks towards both ends, so that it neither lags nor bends there."""
    index = np.arange(values.size)
    half = np.minimum(values.size // _SMOOTHING, np.minimum(index, index[::-1]))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def _draw_losses(axes, lines: list[dict], references: dict[str, float]) -> None:
    steps, loss = _series(lines, "loss")
    smooth = _smooth(loss)
    axes.plot(steps, loss, color=_BLUE, alpha=0.3, linewidth=0.8)
    axes.plot(steps, smooth, color=_BLUE, linewidth=1.8, marker=_marker(loss), label=f"training{_last(smooth)}")
    heldout = sorted({name for line in lines for name in line if name.split("/")[0] == "heldout_loss"})
    for name, marker in zip(heldout, itertools.cycle("osD^vP")):
        steps, loss = _series(lines, name)
        source = name.removeprefix("heldout_loss").replace("/", " ")
        axes.plot(steps, loss, f"-{marker}", color=_ORANGE, linewidth=1.0, markersize=4.5, label=f"held-out{source}{_last(loss)}")
    for name, value in references.items():
        axes.axhline(value, color=_GREY, linewidth=1.0, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(f"{name}\n{value:.2f}", (1, value), (6, 0), ("axes fraction", "data"), "offset points", va="center", color=_GREY)
    axes.set_ylabel("loss, nats/token")
    axes.legend(loc="upper right")


def _draw_series(axes, lines: list[dict], name: str, label: str, color: str) -> None:
    steps, values = _series(lines, name)
    axes.plot(steps, values, color=color, linewidth=1.2, marker=_marker(values))
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.spines.top.set_visible(False)


def _marker(values: np.ndarray) -> str:
    return "o" if values.size == 1 else ""


def _last(values: np.ndarray) -> str:
    return f"  {values[-1]:.3f}" if values.size else ""


def _add_tokens_axis(axes, lines: list[dict]) -> None:
    """A second scale above: tokens need not grow evenly with steps, as the batch may ramp up. Past the last step it goes on as it ended."""
    from matplotlib.ticker import EngFormatter

    steps, tokens = _series(lines, "tokens")
    steps, once = np.unique(np.concatenate([[0.0], steps]), return_index=True)  # held-out lines repeat a step
    tokens = np.concatenate([[0.0], tokens])[once]
    if steps.size == 1:
        return
    slope = (tokens[-1] - tokens[-2]) / (steps[-1] - steps[-2])
    steps, tokens = np.append(steps, 2 * steps[-1]), np.append(tokens, tokens[-1] + slope * steps[-1])
    to_tokens, to_steps = (lambda x: np.interp(x, steps, tokens)), (lambda x: np.interp(x, tokens, steps))
    scale = axes.secondary_xaxis("top", functions=(to_tokens, to_steps))
    scale.xaxis.set_major_formatter(EngFormatter())
    scale.set_xlabel("tokens")
