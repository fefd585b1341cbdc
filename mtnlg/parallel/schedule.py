"""Pipeline schedules by name: which stage does what in which tick. A schedule is a table, made by a pure function of a few numbers."""

from mtnlg.core import schema
from mtnlg.core.errors import ConfigError
from mtnlg.parallel import lockstep
from mtnlg.parallel.greedy import zero_bubble
from mtnlg.parallel.orders import gpipe, interleaved, one_f_one_b, zb_v
from mtnlg.parallel.schedule_file import read_csv
from mtnlg.parallel.table import Op, Schedule

__all__ = ["Op", "Schedule", "gpipe", "interleaved", "make", "one_f_one_b", "zb_v", "zero_bubble"]

KEY = "--config.pipeline.schedule"


def make(pipeline: schema.Pipeline, num_stages: int, num_microbatches: int, recompute: bool) -> Schedule:
    """The schedule that the config asks for; recompute: an R before every B.

    Raises ConfigError for a name that is none, for numbers that do not fit the schedule, or for a table of one's own that breaks a rule;
    MissingInput and DataError as read_csv.
    """
    match pipeline.schedule:
        case "gpipe":
            return gpipe(num_stages, num_microbatches, recompute)
        case "1f1b":
            return one_f_one_b(num_stages, num_microbatches, recompute)
        case "interleaved":
            return interleaved(num_stages, num_microbatches, pipeline.num_chunks, recompute)
        case "zero_bubble":
            return zero_bubble(num_stages, num_microbatches, pipeline.in_flight, recompute)
        case "zb_v":
            return zb_v(num_stages, num_microbatches, recompute)
        case path if path.endswith(".csv"):
            return _own(path, num_stages, num_microbatches, recompute)
    what = f"pipeline.schedule={pipeline.schedule} is none of {', '.join(schema.SCHEDULES)} or FILE.csv"
    raise ConfigError(what, KEY, f"{KEY}=1f1b")


def _own(path: str, num_stages: int, num_microbatches: int, recompute: bool) -> Schedule:
    schedule = read_csv(path)
    there = len(schedule.placement)
    if there != num_stages:
        raise ConfigError(f"{path} is a table for {there} stages, not for mesh.pipe={num_stages}", KEY, f"--config.mesh.pipe={there}")
    there = int(schedule.microbatches.max()) + 1
    if there != num_microbatches:
        what = f"{path} is a table for {there} microbatches, and there are {num_microbatches} in a step of the run"
        raise ConfigError(what, KEY, f"a batch of {there} microbatches from the first step on, without a ramp, or {KEY}=1f1b")
    if schedule.recomputes and not recompute:
        raise ConfigError(f"{path} has ops R, and train.recompute keeps activations", KEY, "--config.train.recompute=full")
    if recompute and not schedule.recomputes:
        raise ConfigError(f"{path} has no ops R, which train.recompute=full needs before every B", KEY, "--config.train.recompute=none")
    broken = lockstep.problems(schedule, num_microbatches, recompute)
    if broken:
        more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise ConfigError(f"{path} cannot be run: {'; '.join(broken[:3])}{more}", KEY, f"a table that keeps the rules, or {KEY}=1f1b")
    return schedule
