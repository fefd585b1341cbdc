"""One job of several processes on this machine: starts them, passes signals on, and ends all when one fails."""

import contextlib
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time

from mtnlg.launch import forward, processes, verdict
from mtnlg.launch.processes import Job

GRACE_SECS = 3.0  # before SIGKILL, for the others when one process failed
# The C++ of collectives on a CPU, which cannot be told to be quiet.
_GLOO = ("[Gloo] Rank ", "Expected number of connected peer ranks")
# With this a process begins to say that jax ends it as another is gone: pages of C++, where `verdict` has a line.
_ABORTED = re.compile(r"[EF]\d{4} .*(coordination_service\w*\.cc:|client\.h:\d+\] Terminating process)")


def run(command: list[str], num_processes: int, num_devices: int | None = None) -> int:
    """Runs `command` num_processes times as one job; returns 0, or the exit code of the process that failed first.

    That of WorkerLost where a process was killed by a signal that nobody sent through here, or did not answer any more.
    num_devices: virtual CPU devices of each process; None: whatever jax finds. Process 0 writes as if it were alone, the lines of
    the others begin with `[1] `, `[2] `, ... A first signal of `forward.NUMBERS` goes to every process; a second one ends them.
    """
    coordinator, children, copiers, ended = f"127.0.0.1:{_free_port()}", [], [], queue.SimpleQueue()
    with forward.Forwarding(children) as signals:
        try:
            for number in range(num_processes):
                environment = _environment(Job(coordinator, num_processes, number), num_devices)
                children.append(child := _start(command, environment, number))
                _thread(_tell_end, child, number, ended)
                for pipe, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                    if pipe is not None:  # process 0 has our standard output, on which it may draw a bar
                        copiers.append(_thread(_copy, pipe, target, f"[{number}] " if number else ""))
            for _ in children:
                if children[failed := ended.get()].returncode:
                    break
        finally:
            forward.ignore()
            silent = _end(children)
    for copier in copiers:
        copier.join(GRACE_SECS)  # what a process has started may hold its pipe for longer
    codes = [child.returncode for child in children]
    if codes[failed] == 0:
        return 0
    found = verdict.of(codes, failed, silent, signals.passed_on)
    print(f"mtnlg: {found.line}", file=sys.stderr, flush=True)
    return found.code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _environment(job: Job, num_devices: int | None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != processes.CLUSTER} | job.environment()
    environment[processes.LAUNCHER] = str(os.getpid())
    environment["JAX_COORDINATOR_BIND_ADDRESS"] = job.coordinator  # otherwise it would listen on every network of this machine
    if num_devices is not None:
        flags = [flag for flag in environment.get("XLA_FLAGS", "").split() if "xla_force_host_platform_device_count" not in flag]
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices), "XLA_FLAGS": " ".join(flags)}
    return environment


def _start(command: list[str], environment: dict[str, str], number: int) -> subprocess.Popen:
    """In a process group of its own: a terminal's Ctrl-C comes through the launcher only, and thus once."""
    pipes = {"stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    if number:
        pipes["stdout"] = subprocess.PIPE
        environment = environment | {"PYTHONUNBUFFERED": "1"}  # lines come when they are written, and a killed process loses none
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0, **pipes)


def _thread(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _tell_end(child: subprocess.Popen, number: int, ended: queue.SimpleQueue) -> None:
    child.wait()
    ended.put(number)


def _copy(pipe, target, prefix: str) -> None:
    is_aborted = False
    for line in pipe:
        is_aborted = is_aborted or _ABORTED.match(line) is not None
        if line.startswith(_GLOO) or (is_aborted and not line.startswith("mtnlg: ")):
            continue
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more: go on, or the process would block on its pipe
            print(prefix + line.rstrip("\n") + "\n", end="", file=target, flush=True)  # in one piece, between other lines


def _end(children: list[subprocess.Popen]) -> dict[int, str]:
    """They cannot go on without the one that failed, nor save: they get the time to say what they have to say.

    Returns the numbers of those that let it pass, with what they were at (`verdict.state`).
    """
    silent, deadline = {}, time.monotonic() + GRACE_SECS
    for number, child in enumerate(children):
        is_stopped = verdict.state(child.pid) == "T"  # and says nothing any more
        try:
            child.wait(0 if is_stopped else max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            silent[number] = verdict.state(child.pid)
            child.kill()
            child.wait()
    return silent
