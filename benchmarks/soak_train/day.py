"""Figure 11: a bad day. Twelve faults come upon a supervised run, and nobody is there."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

from benchmarks.figures import Figure
from benchmarks.soak_train.runs import ROOT, Inputs
from mtnlg import checkpoint
from mtnlg.run import goodput, metrics

FAULTS = (
    "kill@phase:step",
    "kill@phase:save",
    "term@phase:step",
    "stall@phase:batch",
    "kill@phase:publish",
    "corrupt",
    "full@phase:save",
    "kill@phase:batch",
    "hang@phase:step",
    "term@phase:save",
    "kill@phase:rename",
    "kill@phase:step",
)
HOUR_SECS, LEAST_ETTR = 3600, 0.9
PATIENCE_SECS = 20  # of watchdog and supervisor
_SIZE = ("--config.model.num_layers=4", "--config.model.d_model=128", "--config.model.num_heads=4", "--config.model.seq_len=128")
_SIZE += ("--config.model.vocab_size=400", "--config.train.batch_size=8")


def bad_day(folder: pathlib.Path, steps_between: int = 300, save_every: int = 60) -> Figure:
    """Between two faults so many steps; a save every so many.

    The time that was not productive is measured in this run; the same twelve faults in an hour of the same run would have cost the same.
    """
    inputs, workdir, num_steps = Inputs(folder), folder / "day", steps_between * (len(FAULTS) + 1)
    at = {number: steps_between * (number + 1) // save_every * save_every for number in range(len(FAULTS))}
    faults = [f"{fault},step:{at[number]},once:{folder / f'fault.{number}'}" for number, fault in enumerate(FAULTS) if "@" in fault]
    overrides = (f"--config.train.num_steps={num_steps}", f"--config.checkpoint.every_steps={save_every}", "--config.log.every_steps=10")
    limits = (f"--config.watchdog.step_secs={PATIENCE_SECS}", f"--config.watchdog.data_secs={PATIENCE_SECS}")
    train = inputs.command(workdir, *_SIZE, *overrides, *limits)
    command = [sys.executable, "-m", "mtnlg", "supervise", f"--stall_secs={PATIENCE_SECS}", "--", *train]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=ROOT, env=inputs.environment(";".join(faults)), stdout=log, stderr=subprocess.STDOUT) as supervisor,
    ):
        corrupt_at = at[FAULTS.index("corrupt")] + save_every // 2
        threading.Thread(target=_corrupt, args=(workdir, corrupt_at, supervisor), daemon=True).start()
        supervisor.wait()
    account = goodput.read(workdir / goodput.FILE)
    struck = [fault for number, fault in enumerate(FAULTS) if "@" not in fault or (folder / f"fault.{number}").exists()]
    total = sum(account.secs.values())
    cost = total - account.secs["step"]
    hour = 1 - cost / HOUR_SECS
    is_damage_found = any((workdir / "checkpoints").glob("*.corrupt"))
    told = ", ".join(f"{kind} {secs:.0f} s" for kind, secs in account.secs.items() if secs >= 0.5)
    measured = (
        f"{len(struck)} of {len(FAULTS)} faults, {account.num_starts} starts, exit code {supervisor.returncode}; of a simulated hour "
        f"{100 * hour:.1f} %; in truth {100 * account.ettr:.1f} % of {total:.0f} s ({told})"
    )
    passed = supervisor.returncode == 0 and len(struck) == len(FAULTS) and is_damage_found and hour >= LEAST_ETTR
    return Figure(f"{len(FAULTS)} faults in an hour, ended by itself: ETTR of at least {100 * LEAST_ETTR:.0f} %", measured, passed)


def _corrupt(workdir: pathlib.Path, step: int, supervisor: subprocess.Popen) -> None:
    """From this step on: one bit of the newest checkpoint is turned, and the run killed, so that it has to look."""
    while supervisor.poll() is None:
        time.sleep(0.1)
        path = workdir / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in metrics.read(path)[-1:]):
            newest = workdir / "checkpoints" / str(checkpoint.whole_steps(workdir / "checkpoints")[-1])
            victim = max((file for file in (newest / "params").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
            content = bytearray(victim.read_bytes())
            content[random.Random(0).randrange(len(content))] ^= 1
            victim.write_bytes(content)
            os.kill(int((workdir / "lock").read_text().partition("@")[0]), signal.SIGKILL)
            return
