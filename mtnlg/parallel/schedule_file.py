"""A schedule as a CSV file: a line for each thing done, `tick,stage,op,microbatch,virtual_stage`. Idle stages have no line."""

import csv
import io
import pathlib

import numpy as np

from mtnlg.core import files
from mtnlg.core.errors import DataError, MissingInput
from mtnlg.parallel.table import Op, Schedule, Task, from_rows

COLUMNS = ("tick", "stage", "op", "microbatch", "virtual_stage")
LARGEST = 999_999_999  # number in a table
SHOWN = 60  # letters of what is wrong
_OPS = {op.name: op for op in Op if op != Op.IDLE}


def write_csv(schedule: Schedule, path: str) -> None:
    """Writes a table, for `mtnlg plan --table`. Raises CannotWrite or TemporaryFailure."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows([tick, stage, op.name, *which] for tick, stage, (op, *which) in schedule.tasks())
    files.write_atomic(path, text.getvalue(), named_by="--table")


def read_csv(path: str) -> Schedule:
    """The table in a file. A stage's virtual stages, ascending, are its chunks. Whether the table can be run is not judged here.

    Raises MissingInput when the file cannot be read, DataError naming the line when it is no table.
    """
    lines = _parsed(path)
    for name in ("tick", "stage", "microbatch", "virtual_stage"):
        _expect_no_gap(path, lines, name)
    chunk_of, placement = _placed(path, lines)
    num_ticks = 1 + max(line["tick"] for line in lines.values())
    rows: list[list[Task | None]] = [[None] * len(placement) for _ in range(num_ticks)]
    for number, line in lines.items():
        row, stage = rows[line["tick"]], line["stage"]
        if row[stage] is not None:
            raise _damaged(path, number, f"stage {stage} does something else in tick {line['tick']} already", "one line a tick and stage")
        row[stage] = Task(line["op"], line["microbatch"], chunk_of[line["virtual_stage"]])
    return from_rows(rows, placement)


def _parsed(path: str) -> dict[int, dict]:
    """{number of the line: its values by column}."""
    try:
        text = pathlib.Path(path).read_text("utf-8-sig")
    except OSError as error:
        cure = "--config.pipeline.schedule=1f1b, or the path of a table"
        raise MissingInput(f"cannot read the schedule: {error.strerror}", path, cure) from error
    except UnicodeDecodeError as error:
        raise DataError(f"the schedule is no text: {error.reason} at byte {error.start}", path, "a CSV file in UTF-8") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            raise _damaged(path, number, "a table has no comments", "the file without this line")
    reader, lines = csv.reader(text.splitlines()), {}
    try:
        header = next(reader, [])
        if tuple(cell.strip() for cell in header) != COLUMNS:
            raise _damaged(path, 1, f"the columns are {','.join(header)[:SHOWN]!r}", f"the header {','.join(COLUMNS)}")
        for cells in reader:
            if cells:
                lines[reader.line_num] = _line(path, reader.line_num, [cell.strip() for cell in cells])
    except csv.Error as error:
        raise _damaged(path, reader.line_num, f"no line of a CSV file: {error}", "plain numbers between commas") from error
    if not lines:
        raise _damaged(path, 2, "the table is empty", f"a line {','.join(COLUMNS)} for each thing done")
    return lines


def _line(path: str, number: int, cells: list[str]) -> dict:
    if len(cells) != len(COLUMNS):
        raise _damaged(path, number, f"not {len(COLUMNS)} values but {len(cells)}", ",".join(COLUMNS))
    line = dict(zip(COLUMNS, cells, strict=True))
    if line["op"] not in _OPS:
        raise _damaged(path, number, f"op={line['op'][:SHOWN]} is none of {', '.join(_OPS)}", "one of them")
    for name in COLUMNS:
        if name != "op" and not (line[name].isdecimal() and len(line[name]) <= len(str(LARGEST))):
            raise _damaged(path, number, f"{name}={line[name][:SHOWN]} is no whole number from 0 to {LARGEST}", f"{name}=0")
    return {name: _OPS[value] if name == "op" else int(value) for name, value in line.items()}


def _expect_no_gap(path: str, lines: dict[int, dict], name: str) -> None:
    """Ticks, stages, microbatches and virtual stages are counted from 0 on: a number that nobody has is a mistake."""
    values = {line[name] for line in lines.values()}
    gap = min(set(range(len(values) + 1)) - values)
    for number, line in lines.items():
        if line[name] > gap:
            what = f"{name}={line[name]}, and no line has {name}={gap}"
            raise _damaged(path, number, what, f"{name} counted from 0 on without a gap")


def _placed(path: str, lines: dict[int, dict]) -> tuple[dict[int, int], np.ndarray]:
    """The chunk of each virtual stage, and the placement [P, C]."""
    stage_of: dict[int, int] = {}
    for number, line in lines.items():
        virtual_stage, stage = line["virtual_stage"], line["stage"]
        if stage_of.setdefault(virtual_stage, stage) != stage:
            what = f"virtual_stage={virtual_stage} is on stage={stage} here and on stage={stage_of[virtual_stage]} before"
            raise _damaged(path, number, what, f"stage={stage_of[virtual_stage]}")
    held = [sorted(v for v, stage in stage_of.items() if stage == wanted) for wanted in range(1 + max(stage_of.values()))]
    for number, line in lines.items():
        if len(held[line["stage"]]) != len(held[0]):
            what = f"stage={line['stage']} holds {len(held[line['stage']])} virtual stages, and stage=0 holds {len(held[0])}"
            raise _damaged(path, number, what, "as many virtual stages on every stage")
    return {v: chunk for chunks in held for chunk, v in enumerate(chunks)}, np.array(held, np.int32)


def _damaged(path: str, number: int, what: str, cure: str) -> DataError:
    return DataError(what, f"{path}, line {number}", cure)
