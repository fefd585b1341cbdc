"""A phase that takes too long ends the process, whatever its main thread is at; nothing else does."""

import subprocess
import sys
import time

import pytest

from mtnlg.core import schema
from mtnlg.run import watchdog
from mtnlg.run.phases import PHASES, Phases
from mtnlg.run.watchdog import Watchdog

STUCK = """
import hashlib, sys, threading, time
from mtnlg.core import schema
from mtnlg.run import watchdog
from mtnlg.run.phases import Phases

watchdog.LOOK_SECS = 0.1
phases = Phases()
with watchdog.Watchdog(phases, schema.Watchdog(step_secs=1.0)):
    phases.turn("step")
    phases.step = 7
    print("at work", flush=True)
    {action}
print("done", flush=True)
"""


def stuck(action: str) -> subprocess.Popen:
    script = STUCK.format(action=action)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("action", ["hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", "threading.Lock().acquire(); time.sleep(600)"])
def test_stuck_in_c_or_asleep_it_ends_with_every_thread_s_stack_and_one_line(action):
    process = stuck(action)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 74
    assert "most recent call first" in err and 'File "<string>", line 13 in <module>' in err
    *_, line = err.splitlines()
    what, _, cure = line.partition(" (step 7). Try: ")
    assert what == "mtnlg: error: the run is stuck: step has taken 1 s, longer than watchdog.step_secs=1"
    assert cure == "the same command, which goes on from the last checkpoint; or a longer --config.watchdog.step_secs"


def test_many_short_visits_are_no_long_one():
    process = stuck("[(time.sleep(0.2), phases.turn('step')) for _ in range(15)]")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "at work\ndone\n", "")


def test_while_the_process_is_stopped_no_time_passes():
    """As by Ctrl-Z. The one second that it then works is below the limit."""
    import signal

    process = stuck("time.sleep(0.3); time.sleep(0.3)")
    process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=120) == ("done\n", "")


def test_limits_given_and_automatic():
    phases = Phases()
    automatic = Watchdog(phases, schema.Watchdog())
    assert {phase: automatic.limit_secs(phase) for phase in PHASES} == watchdog.UNLEARNT_SECS | {"step": 3600}
    given = Watchdog(phases, schema.Watchdog(init_secs=5.0, step_secs=0.0))
    assert (given.limit_secs("init"), given.limit_secs("step"), given.limit_secs("save")) == (5, 0, 3600)


def test_steps_are_learnt_from():
    phases = Phases()
    automatic = Watchdog(phases, schema.Watchdog())
    phases.turns.extend([900, 1, 1, 1, 1])  # the first one compiles
    assert automatic.limit_secs("step") == 3600, "too few"
    phases.turns.append(1)
    assert automatic.limit_secs("step") == 60, "the floor"
    phases.turns.extend([40] * 10)
    assert automatic.limit_secs("step") == 200


def test_every_look_is_a_sign_of_life(monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_SECS", 0.01)
    looks = []

    def look():
        looks.append(1)
        raise OSError

    with Watchdog(Phases(), schema.Watchdog(), look):
        until = time.monotonic() + 60
        while len(looks) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(looks) >= 3
