"""Golden lines of a log, and a bar on a terminal."""

import io

import pytest

from mtnlg.run.progress import Progress, format_secs

VALUES = {"loss": 3.21449, "learning_rate": 5.94e-4, "grad_norm": 0.8149, "tokens_per_sec": 6812.3, "mfu": 0.4312}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    secs = 1000.0

    def __call__(self):
        return self.secs


def test_plain_lines():
    log, clock = io.StringIO(), Clock()
    with Progress(1000, first_step=100, log_every_steps=20, stream=log, clock=clock) as progress:
        for step in range(101, 1001):
            progress.update(step, **VALUES, not_a_column=1)
            clock.secs += 0.171
    lines = log.getvalue().splitlines()
    assert len(lines) == 45
    assert lines[0] == "step 120/1000  loss 3.2145  lr 5.9e-04  gnorm 0.81  6,812 tok/s  MFU 43.1 %  eta 02:30"
    assert lines[-1] == "step 1000/1000  loss 3.2145  lr 5.9e-04  gnorm 0.81  6,812 tok/s  MFU 43.1 %  eta 00:00"


def test_plain_lines_show_only_what_is_given_and_always_the_last_step():
    log = io.StringIO()
    progress = Progress(15, stream=log)
    progress.update(10, loss=2.0, mfu=None)
    progress.update(11, loss=2.0)
    progress.note("held-out 2.1")
    progress.update(15)
    lines = log.getvalue().splitlines()
    assert lines[:2] == ["step 10/15  loss 2.0000", "held-out 2.1"]
    assert lines[2].startswith("step 15/15  eta ")


def test_bar_on_a_terminal():
    terminal, clock = Terminal(), Clock()
    with Progress(1000, first_step=500, stream=terminal, clock=clock) as progress:
        progress.update(501, **VALUES)
        clock.secs += 2.0
        progress.update(502, **VALUES)
        progress.note("held-out 2.1")
    shown = terminal.getvalue()
    assert "step 500/1000 |" in shown
    assert "step 502/1000 |" in shown
    assert "loss 3.2145  6,812 tok/s  MFU 43.1 %  eta 16:36" in shown
    assert "\r" in shown.split("held-out 2.1\n")[0]  # the bar was cleared for the note
    assert shown.endswith("\n")


@pytest.mark.parametrize("secs, text", [(0, "00:00"), (59.7, "01:00"), (151, "02:31"), (3600, "1:00:00"), (97351, "27:02:31")])
def test_times(secs, text):
    assert format_secs(secs) == text
