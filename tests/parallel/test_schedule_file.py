"""Tables of one's own: written and read again they are the same; a bad one is told by its line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtnlg.core import schema
from mtnlg.core.errors import CannotWrite, ConfigError, DataError, MissingInput
from mtnlg.parallel import schedule, schedule_file

TABLES = [schedule.gpipe(1, 2), schedule.one_f_one_b(4, 6, True), schedule.interleaved(2, 4, 3), schedule.zb_v(3, 5)]
HEADER = "tick,stage,op,microbatch,virtual_stage\n"


def own(path, num_stages: int, num_microbatches: int, recompute: bool = False):
    return schedule.make(schema.Pipeline(schedule=str(path)), num_stages, num_microbatches, recompute)


@pytest.mark.parametrize("table", TABLES)
def test_round_trip(table, tmp_path):
    path = tmp_path / "table.csv"
    schedule_file.write_csv(table, path)
    again = own(path, len(table.placement), int(table.microbatches.max()) + 1, table.recomputes)
    for ours, theirs in zip(again, table, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.int32


@given(st.randoms())
def test_the_order_of_lines_is_free(tmp_path_factory, random):
    path = tmp_path_factory.mktemp("table") / "table.csv"
    schedule_file.write_csv(TABLES[1], path)
    header, *lines = path.read_text().splitlines()
    random.shuffle(lines)
    path.write_text("\ufeff" + "\r\n".join([header, "", *lines]))
    np.testing.assert_array_equal(own(path, 4, 6, True).ops, TABLES[1].ops)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the columns are '' \(.*table.csv, line 1\). Try: the header tick,stage,op,microbatch,virtual_stage"),
        ("tick,stage\n0,0\n", "the columns are 'tick,stage' .*line 1"),
        (HEADER, "the table is empty"),
        (HEADER + "0,0,F,0\n", r"not 5 values but 4 \(.*line 2"),
        (HEADER + "0,0,F,0,0\n\n0,0,X,0,0\n", r"op=X is none of F, R, B, W \(.*line 4"),
        (HEADER + "0,0,F,-1,0\n", r"microbatch=-1 is no whole number from 0 to 999999999 \(.*line 2"),
        (HEADER + "0,0,F,0,0\n1.5,0,B,0,0\n", r"tick=1.5 is no whole number from 0 to 999999999 \(.*line 3"),
        (HEADER + "9999999999,0,F,0,0\n", r"tick=9999999999 is no whole number from 0 to 999999999 \(.*line 2"),
        (HEADER + "7" * 5000 + ",0,F,0,0\n", "tick=7{60} is no whole number"),
        (HEADER + "0,0,F,0,0\n # two, of, five, and, one\n", r"a table has no comments \(.*line 3\). Try: the file without this line"),
        ("# mine\n" + HEADER, r"a table has no comments \(.*line 1"),
        (HEADER + "0,0,F,0,0\n0,0,F,1,0\n", r"stage 0 does something else in tick 0 already \(.*line 3"),
        (HEADER + "0,0,F,0,0\n999999999,0,B,0,0\n", r"tick=999999999, and no line has tick=1 \(.*line 3"),
        (HEADER + "0,1,F,0,0\n", r"stage=1, and no line has stage=0 \(.*line 2"),
        (HEADER + "0,0,F,0,0\n1,1,F,0,1\n2,1,B,0,0\n", r"virtual_stage=0 is on stage=1 here and on stage=0 before \(.*line 4"),
        (HEADER + "0,0,F,0,0\n1,1,F,0,1\n2,1,F,0,2\n", r"stage=1 holds 2 virtual stages, and stage=0 holds 1 \(.*line 3"),
        (HEADER + "0,0,\x00,0,0\n", "op=.* is none of F, R, B, W"),
        (HEADER + "0" * 200_000 + "\n", r"no line of a CSV file: field larger than field limit .*line 2"),
        ("0" * 200_000 + "\n", r"no line of a CSV file: field larger than field limit .*line 1"),
    ],
)
def test_bad_files(text, message, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        schedule_file.read_csv(path)
    assert "\n" not in str(error.value)


def test_no_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"tick\xff")
    with pytest.raises(DataError, match="the schedule is no text: invalid start byte at byte 4"):
        schedule_file.read_csv(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match="cannot read the schedule: No such file or directory"):
        own(tmp_path / "none.csv", 2, 2)
    with pytest.raises(MissingInput, match="cannot read the schedule: Is a directory"):
        schedule_file.read_csv(tmp_path)
    with pytest.raises(CannotWrite):
        schedule_file.write_csv(TABLES[0], tmp_path)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((3, 6, True), "is a table for 4 stages, not for mesh.pipe=3 .*Try: --config.mesh.pipe=4"),
        ((4, 8, True), "is a table for 6 microbatches, and there are 8 .*Try: a batch of 6 microbatches"),
        ((4, 6, False), "has ops R, and train.recompute keeps activations .*Try: --config.train.recompute=full"),
    ],
)
def test_a_table_for_other_numbers(numbers, message, tmp_path):
    schedule_file.write_csv(TABLES[1], tmp_path / "table.csv")
    with pytest.raises(ConfigError, match=message):
        own(tmp_path / "table.csv", *numbers)


def test_a_table_that_breaks_the_rules(tmp_path):
    path = tmp_path / "table.csv"
    schedule_file.write_csv(schedule.gpipe(2, 4), path)
    with pytest.raises(ConfigError, match="has no ops R, which train.recompute=full needs .*Try: --config.train.recompute=none"):
        own(path, 2, 4, True)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if ",W,0," not in line and ",W,1," not in line))
    message = (
        "table.csv cannot be run: stage 0: W of microbatch 0 on virtual stage 0 is missing; stage 1: W of microbatch 0 on virtual stage 1 "
        "is missing; stage 0: W of microbatch 1 on virtual stage 0 is missing; and 1 more"
    )
    with pytest.raises(ConfigError, match=message):
        own(path, 2, 4)
