"""A server's life as a process: it starts at once, ends in time whatever its clients do, with exit code 0 and no thread left."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from mtnlg.core.errors import ConfigError, DataError, TemporaryFailure
from mtnlg.serve.limits import Limits
from mtnlg.serve.run import serve
from tests.serve import raw
from tests.serve.running import until

ROOT = Path(__file__).parent.parent.parent
ASKED = {"model": "fake", "prompt": "Hello", "temperature": 0, "stream": True}


@contextlib.contextmanager
def process(*options: str):
    command = [sys.executable, "-m", "tests.serve.fake_server", "--port=0", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def stream(url: str, num_tokens: int, into: list) -> threading.Thread:
    """Reads a stream in a thread: its events, and last the kind of what ended it."""

    def read():
        with httpx.stream("POST", f"{url}/v1/completions", json={**ASKED, "max_tokens": num_tokens}, timeout=20) as response:
            into.extend(line.removeprefix("data: ") for line in response.iter_lines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_can_end_in_time_does_and_the_rest_is_told(number):
    """Beside clients that send half a request, and one that says nothing."""
    with process("--grace_secs=3", "--step_secs=0.02", "--context=5000") as child, contextlib.ExitStack() as stack:
        url = child.stdout.readline().strip()
        port = int(url.rpartition(":")[2])
        for sent in (b"", b"GET / HT", raw.post(ASKED)[:-3], raw.head("GET", "/health")):
            stack.enter_context(raw.connection(port)).sendall(sent)
        short, long = [], []
        threads = [stream(url, 60, short), stream(url, 4000, long)]
        assert until(lambda: httpx.get(f"{url}/metrics").text.count("mtnlg_running 2.0"))
        begin = time.monotonic()
        child.send_signal(number)
        assert until(lambda: not accepts(port))
        for thread in threads:
            thread.join()
        assert child.wait(10) == 0 and 2.5 < time.monotonic() - begin < 4  # with the end of the process, on a busy machine
        assert child.stderr.read() == "ending: 2 texts are being written, at most 3 s; Ctrl-C again ends at once\n"
    assert short[-1] == "[DONE]" and len(short) > 10
    assert json.loads(long[-1])["error"]["code"] == "unavailable" and "[DONE]" not in long and len(long) > 60


def test_a_request_that_has_not_arrived_is_not_waited_for():
    with process("--grace_secs=10") as child:
        port = int(child.stdout.readline().rpartition(":")[2])
        with raw.connection(port) as sock:
            sock.sendall(raw.post(ASKED)[:-3])
            time.sleep(0.3)
            begin = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert raw.refusal_of(raw.read_all(sock))[0] == 503
        assert child.wait(10) == 0 and time.monotonic() - begin < 3


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def test_a_template_that_never_ends_does_not_keep_the_server():
    """Its clients are told, and the process ends."""
    with process("--endless_template", "--deadline_secs=1") as child:
        url = child.stdout.readline().strip()
        asked = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=20).status_code == 504
        begin = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0 and time.monotonic() - begin < 5
        assert child.stderr.read() == "ending\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(number):
    """Streams are told, and a client that is still being read is not waited for; what comes within a second of the first is the first."""
    with process("--step_secs=0.02", "--context=5000", "--endless_template") as child:
        url = child.stdout.readline().strip()
        told = []
        thread = stream(url, 4000, told)
        with raw.connection(int(url.rpartition(":")[2])) as sock:
            sock.sendall(raw.post({"model": "fake", "messages": [{"role": "user", "content": "Hello"}]}, path="/v1/chat/completions"))
            assert until(lambda: len(told) > 3)
            child.send_signal(number)
            assert child.stderr.readline() == "ending: 1 text is being written, at most 30 s; Ctrl-C again ends at once\n"
            child.send_signal(number)
            time.sleep(1.2)
            assert child.poll() is None and "error" not in told[-1]
            begin = time.monotonic()
            child.send_signal(number)
            assert raw.refusal_of(raw.read_all(sock))[0] == 503
        thread.join()
        assert child.wait(10) == 128 + number and time.monotonic() - begin < 3
        assert child.stderr.read() == "stopped\n"
    assert json.loads(told[-1])["error"]["code"] == "unavailable"


@pytest.mark.parametrize("load_secs", [1, 30])
def test_a_server_that_loads_ends_soon_and_announces_nothing(load_secs):
    """Whether or not what it loads can be awaited."""
    port = free_port()
    with process(f"--port={port}", f"--load_secs={load_secs}") as child:
        assert until(lambda: accepts(port), 10)
        begin = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 0 and time.monotonic() - begin < 4
        assert (child.stdout.read(), child.stderr.read()) == ("", "stopped\n")


def test_an_idle_server_ends_at_once():
    with process() as child:
        child.stdout.readline()
        begin = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0 and time.monotonic() - begin < 1.5


def test_nobody_reading_what_it_says_does_not_hurry_its_end():
    """As when Ctrl-C has ended `tee` too."""
    with process("--step_secs=0.02") as child:
        url = child.stdout.readline().strip()
        told = []
        thread = stream(url, 60, told)
        assert until(lambda: told)
        child.stderr.close()
        child.send_signal(signal.SIGINT)
        thread.join()
        assert child.wait(10) in (0, 120)  # Python's own, for what it could not write
    assert told[-1] == "[DONE]"


def test_the_server_lives_while_the_model_loads():
    port = free_port()
    with process(f"--port={port}", "--load_secs=1.5") as child:
        assert until(lambda: accepts(port))
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health").status_code == 200 and httpx.get(f"{url}/ready").status_code == 503
        assert child.stdout.readline().strip() == url and httpx.get(f"{url}/ready").status_code == 200


def never(check):
    raise AssertionError("no model is loaded")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_machines_need_a_key(host):
    with pytest.raises(ConfigError, match="no key is asked for"):
        serve(never, host, 0, (), Limits(), print, print)


def test_an_address_that_is_taken_or_is_none():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(TemporaryFailure, match="cannot listen at 127.0.0.1:"):
        serve(never, "127.0.0.1", taken.getsockname()[1], (), Limits(), print, print)
    with pytest.raises(ConfigError, match="is no address"):
        serve(never, "no such host", 0, (b"a key",), Limits(), print, print)


def test_what_loading_raises_ends_the_server():
    def broken(check):
        raise DataError("the weights are damaged", "model.safetensors")

    before = threading.active_count()
    with pytest.raises(DataError, match="damaged"):
        serve(broken, "127.0.0.1", 0, (), Limits(), print, print)
    assert threading.active_count() == before
