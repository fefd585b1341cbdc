"""`goodput.png`: how far a run came over time, and what it was at."""

import io
import pathlib

from mtnlg.core.files import write_atomic
from mtnlg.run.curves import DOTS_PER_INCH, STYLE
from mtnlg.run.goodput import KINDS, Account

SIZE_INCHES = (10, 4.5)
_COLORS = {
    "init": "#7b5aa6",
    "compile": "#c9a227",
    "data": "#58a8b8",
    "step": "#3a8f5c",
    "evaluate": "#2f6db3",
    "save": "#8a8a8a",
    "lost": "#d9622b",
    "down": "#2b2b2b",
}


def draw(account: Account, path: pathlib.Path) -> pathlib.Path:
    """Raises TemporaryFailure, CannotWrite."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    unit, divisor = _unit(max((span.begin + span.secs for span in account.spans), default=0.0))
    with matplotlib.rc_context(STYLE):
        figure = Figure(SIZE_INCHES, DOTS_PER_INCH, layout="constrained")
        steps, strip = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        for span in account.spans:
            bar = {"left": span.begin / divisor, "width": span.secs / divisor, "color": _COLORS[span.kind], "linewidth": 0}
            strip.barh(0, height=1, **bar)
            ends = (span.begin / divisor, (span.begin + span.secs) / divisor)
            if span.kind in ("step", "lost"):
                steps.plot(ends, (span.first, span.last), color=_COLORS[span.kind], linewidth=2.0)
        steps.set_ylabel("step")
        steps.set_ylim(bottom=0)
        strip.set_yticks([])
        strip.grid(False)
        strip.set_xlabel(unit)
        strip.set_xlim(left=0)
        secs, total = account.secs, sum(account.secs.values()) or 1.0
        shown = [kind for kind in KINDS if secs[kind]]
        handles = [Patch(color=_COLORS[kind], label=f"{kind} {100 * secs[kind] / total:.1f} %") for kind in shown]
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        steps.set_title(f"effective training time {100 * account.ettr:.1f} %", loc="left", fontsize=11)
        image = io.BytesIO()
        figure.savefig(image)
    write_atomic(path, image.getvalue())
    return path


def _unit(secs: float) -> tuple[str, float]:
    return ("hours", 3600.0) if secs > 2 * 3600 else ("minutes", 60.0) if secs > 120 else ("seconds", 1.0)
