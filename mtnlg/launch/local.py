"""One job of several processes on this machine: starts them, passes signals on, and ends all when one fails."""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time

from mtnlg.launch import forward, processes, verdict
from mtnlg.launch.processes import Job

GRACE_SECS = 3.0  # before SIGKILL, for the others when one process failed


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
                children.append(_start(command, environment) if number == 0 else _start_piped(command, environment))
                _thread(_tell_end, children[-1], number, ended)
                if number:
                    pipes = ((children[-1].stdout, sys.stdout), (children[-1].stderr, sys.stderr))
                    copiers += [_thread(_copy, pipe, target, f"[{number}] ") for pipe, target in pipes]
            for _ in children:
                if children[failed := ended.get()].returncode:
                    break
        finally:
            forward.ignore()
            silent = _end(children)
    for copier in copiers:
        copier.join()
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


def _start(command: list[str], environment: dict[str, str], **output) -> subprocess.Popen:
    """In a process group of its own: a terminal's Ctrl-C comes through the launcher only, and thus once."""
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0, **output)


def _start_piped(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    unbuffered = environment | {"PYTHONUNBUFFERED": "1"}  # lines come when they are written, and a killed process loses none
    return _start(command, unbuffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")


def _thread(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _tell_end(child: subprocess.Popen, number: int, ended: queue.SimpleQueue) -> None:
    child.wait()
    ended.put(number)


def _copy(pipe, target, prefix: str) -> None:
    for line in pipe:
        if line.startswith(
            ("[Gloo] Rank ", "Expected number of connected peer ranks")
        ):  # the C++ of collectives on a CPU, which cannot be told to be quiet
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
