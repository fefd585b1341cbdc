"""Figures that are tests already: how many of them pass."""

import re
import subprocess
import sys

from benchmarks.figures import Figure
from benchmarks.soak_train.runs import ROOT


def tests(target: str, least: int, *selection: str) -> Figure:
    """Runs these; passed if all pass, and at least so many."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *selection]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    summary = ended.stdout.strip().splitlines()[-1]
    count = int((re.search(r"(\d+) passed", summary) or [0, 0])[1])
    failed = re.findall(r"^FAILED (\S+)", ended.stdout, re.MULTILINE)
    measured = f"`pytest {' '.join(selection)}`: {count} passed" + (f", failed: {', '.join(failed)}" if failed else "")
    return Figure(target, measured, ended.returncode == 0 and count >= least)
