"""Freed memory really stays in the process, in a fresh one, as its own size says."""

import os
import platform
import subprocess
import sys

import pytest

SIZE = """
import os, sys, threading
from mtnlg.launch.allocator import keep_freed_pages
print(keep_freed_pages() if sys.argv[1] == "call" else None)
def work():
    buffers = [bytearray(b"x") * 2**20 for _ in range(500)]
for _ in range(2):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20)
"""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs Linux with glibc")


def run(call: str = "call", **variables) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SIZE, call], env=os.environ | variables, text=True, capture_output=True)
    return done.stdout.split() or [done.stderr.splitlines()[-1]]


@needs_glibc
def test_freed_pages_stay_with_it_and_go_without_it():
    done, kept_mib = run()
    _, left_mib = run("do not call")
    assert done == "True"
    assert 500 < int(kept_mib) < 700  # kept, and used again by the second thread
    assert int(left_mib) < 250


@needs_glibc
def test_the_environment_can_switch_it_off():
    done, left_mib = run(MTNLG_KEEP_FREED_PAGES="0")
    assert done == "False"
    assert int(left_mib) < 250


def test_it_keeps_its_hands_off_another_allocator(monkeypatch):
    from mtnlg.launch.allocator import keep_freed_pages

    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2")
    assert keep_freed_pages() is False


def test_a_value_that_means_nothing_is_refused():
    assert run(MTNLG_KEEP_FREED_PAGES="yes") == [
        "mtnlg.core.errors.ConfigError: MTNLG_KEEP_FREED_PAGES=yes is neither 0 nor 1 (environment). Try: MTNLG_KEEP_FREED_PAGES=0"
    ]


@pytest.mark.parametrize("missing", [AttributeError, TypeError])
def test_without_mallopt_nothing_is_done(monkeypatch, missing):
    from mtnlg.launch import allocator

    class Library:
        def __init__(self, name):
            raise missing

    monkeypatch.setattr(allocator.ctypes, "CDLL", Library)
    assert allocator.keep_freed_pages() is False
