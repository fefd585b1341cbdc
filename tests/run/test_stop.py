"""Signals are answered while the main thread is deep in C, where no Python handler runs; a second one ends the process."""

import signal
import subprocess
import sys
import time

import pytest

from mtnlg.run import stop

BUSY = """
import hashlib, sys
from mtnlg.run import stop

stop.ONE_WISH_SECS = float(sys.argv[1])
with stop.StopSignals("it stops") as signals:
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))
print("received" if signals.received else "nothing", flush=True)
"""


@pytest.fixture
def busy():
    """A function: a process that has just gone into C for so many iterations."""
    started = []

    def start(one_wish_secs, iterations):
        command = [sys.executable, "-c", BUSY, str(one_wish_secs), str(iterations)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "busy\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_the_first_is_answered_at_once_and_the_second_ends_it(busy, number, code):
    process = busy(0, 10**9)  # minutes
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "mtnlg: SIGTERM: it stops; a second signal ends it at once, without saving\n"
    process.send_signal(number)
    assert process.wait(timeout=20) == code


def test_a_wish_sent_twice_is_one_wish(busy):
    process = busy(60, 10**6)  # about a second
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (out, process.returncode, err.count("mtnlg: ")) == ("received\n", 0, 1)


def test_without_a_signal_nothing_is_said_and_the_old_handlers_come_back(capfd):
    before = [signal.getsignal(number) for number in stop.NUMBERS]
    with stop.StopSignals("it stops") as signals:
        signals.promise("it ends")
    assert not signals.received
    assert [signal.getsignal(number) for number in stop.NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert capfd.readouterr().err == ""


def test_a_promise_that_changes_is_told_to_whoever_has_sent_a_signal(capfd):
    with stop.StopSignals("it stops") as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received
        err, until = "", time.monotonic() + 20
        while "it stops" not in err and time.monotonic() < until:
            err += capfd.readouterr().err
        signals.promise("it ends")
        err += capfd.readouterr().err
    assert [line.split(";")[0] for line in err.splitlines()] == ["mtnlg: SIGTERM: it stops", "mtnlg: SIGTERM: it ends"]
