"""What every test gets: sixteen CPU devices, ears for Ctrl-C, deterministic property tests, slices of the suite, where seconds went.

The environment is set before anything imports jax, so nothing here does.
"""

import os
import signal
import zlib
from collections import defaultdict
from pathlib import Path

import hypothesis
import pytest

NUM_DEVICES = 16

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in f]
# Tiny programs run once: LLVM's optimisations would be most of the suite's time. XLA's own passes stay on.
os.environ["XLA_FLAGS"] = " ".join([*_flags, f"--xla_force_host_platform_device_count={NUM_DEVICES}", "--xla_backend_optimization_level=0"])

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script: every child would be deaf to Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption("--slice", metavar="I/N", help="keep the I-th of N parts of the test files, I from 0, parted by a hash of their paths")


def pytest_configure(config):
    _slice(config)  # a bad --slice is told at once


def pytest_report_header(config):
    if _slice(config) is None:
        return None
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    kept = [path.relative_to(config.rootpath).as_posix() for path in files if _in_slice(path, config)]
    return [f"slice {config.getoption('slice')}: {len(kept)} of {len(files)} test files", *(f"  {name}" for name in kept)]


def pytest_ignore_collect(collection_path, config):
    if _slice(config) is not None and collection_path.match("test_*.py") and not _in_slice(collection_path, config):
        return True
    return None


def pytest_terminal_summary(terminalreporter):
    secs_by_room = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if type(report) is pytest.TestReport and report.when in ("setup", "call"):  # a subtest's report is no room's own
                secs_by_room[_room(report.nodeid)] += report.duration
    if secs_by_room:
        terminalreporter.section("seconds by room")
        for room, secs in sorted(secs_by_room.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{secs:8.1f}  {room}")


def _room(nodeid: str) -> str:
    """'core' of tests/core/test_config.py::test_x, and 'test_architecture.py' of a file right under tests/."""
    parts = Path(nodeid.partition("::")[0]).parts
    return parts[1] if parts[0] == "tests" and len(parts) > 1 else parts[0]


def _slice(config) -> tuple[int, int] | None:
    text = config.getoption("slice")
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise pytest.UsageError(f"--slice={text}: it should be I/N with 0 <= I < N, as 0/4")
    return int(index), int(count)


def _in_slice(path: Path, config) -> bool:
    index, count = _slice(config)
    return zlib.crc32(path.relative_to(config.rootpath).as_posix().encode()) % count == index
