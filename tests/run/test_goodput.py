"""Where a run's time went: every second once, whatever ended its starts."""

import itertools
import json

import pytest

from mtnlg.core.errors import DataError
from mtnlg.run import goodput, goodput_picture
from mtnlg.run.goodput import Ledger
from mtnlg.run.phases import Phases


class Clock:
    """Of the wall and of the phases alike."""

    def __init__(self):
        self.secs = 1e9

    def __call__(self):
        return self.secs

    def wait(self, secs):
        self.secs += secs


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / goodput.FILE


def started(path, clock, step, init_secs=2.0):
    phases = Phases(clock)
    clock.wait(init_secs)
    ledger = Ledger(path, phases, clock)
    ledger.begin(step)
    phases.turn("step")
    return ledger, phases


def test_a_start_without_an_end_and_one_more(path, clock):
    """Eight steps of 10 s are told and two more are not when it dies; a save at step 5 is what remains."""
    ledger, phases = started(path, clock, 0)
    for step in (2, 4, 5, 8):
        clock.wait(10 * (step - {2: 0, 4: 2, 5: 4, 8: 5}[step]))
        if step == 5:
            with phases.within("save"):
                clock.wait(4)
        ledger.write(step)
    ledger.close()
    clock.wait(20 + 30)  # two steps that nobody told of, and thirty seconds until somebody starts it again
    ledger, phases = started(path, clock, 5, init_secs=3)
    clock.wait(50)
    with phases.within("evaluate"):
        clock.wait(5)
    ledger.write(10)
    ledger.close()
    account = goodput.read(path)
    expected = {"init": 5, "step": 100, "lost": 30, "save": 4, "evaluate": 5, "down": 50, "compile": 0, "data": 0}
    assert {kind: round(secs, 6) for kind, secs in account.secs.items()} == expected
    assert account.num_starts == 2 and account.ettr == pytest.approx(100 / 194)
    assert all(a.begin + a.secs == pytest.approx(b.begin) for a, b in itertools.pairwise(account.spans)), "no gap, nothing twice"


def test_nobody_waits_for_a_run_that_is_finished(path, clock):
    ledger, _ = started(path, clock, 0)
    clock.wait(10)
    ledger.write(5, ends=True)
    clock.wait(10_000)
    ledger, _ = started(path, clock, 5)
    clock.wait(6)
    ledger.write(7)
    assert {kind: secs for kind, secs in goodput.read(path).secs.items() if secs} == {"init": 4, "step": 16}


@pytest.mark.parametrize(("step", "lost"), [(0, 40), (3, 10), (4, 0), (2, 20)])
def test_what_is_lost_hangs_on_the_step_restored(path, clock, step, lost):
    """Within a line that tells of several steps each has its share."""
    ledger, _ = started(path, clock, 0)
    clock.wait(40)
    ledger.write(4)
    ledger.begin(step)  # as a rollback within a start does
    clock.wait(10 * (4 - step) or 1)
    ledger.write(4)
    assert goodput.read(path).secs["lost"] == pytest.approx(lost)


def test_what_is_lost_is_lost_once(path, clock):
    ledger, phases = started(path, clock, 0)
    for _ in range(3):
        clock.wait(10)
        with phases.within("evaluate"):
            clock.wait(1)
        ledger.write(10)
        ledger.begin(0)
    clock.wait(10)
    ledger.write(10)
    secs = goodput.read(path).secs
    assert (secs["step"], secs["lost"], secs["evaluate"]) == pytest.approx((10, 33, 0))


def test_a_line_that_a_crash_tore_is_forgotten_and_the_rest_is_kept(path, clock):
    ledger, _ = started(path, clock, 0)
    clock.wait(8)
    ledger.write(1)
    ledger.close()
    path.write_bytes(path.read_bytes() + b'{"step": 2, "a')
    started(path, clock, 1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 1]
    assert goodput.read(path).secs["step"] == 8


def test_a_clock_that_is_set_back_counts_nothing_twice(path, clock):
    ledger, phases = started(path, clock, 0)
    phases_clock, wall = Clock(), clock
    phases._clock = phases_clock
    phases.since = phases_clock()
    phases_clock.wait(10)
    wall.wait(-100)
    ledger.write(1)
    account = goodput.read(path)
    assert account.secs["step"] == 0 and all(span.secs >= 0 for span in account.spans)


@pytest.mark.parametrize("line", ['{"step": 1}', '{"step": 1, "at": "noon"}', '{"step": 1, "at": 1.0, "secs/step": "many"}'])
def test_a_damaged_line_is_told(path, line):
    path.write_text('{"step": 0, "at": 1.0, "begins": true}\n' + line + "\n")
    with pytest.raises(DataError, match="damaged line of where the time went"):
        goodput.read(path)


def test_the_picture_is_drawn(path, clock, tmp_path):
    ledger, _ = started(path, clock, 0)
    clock.wait(8)
    ledger.write(1)
    picture = goodput_picture.draw(goodput.read(path), tmp_path / "goodput.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
