"""Slow clients, clients that do not read, and what is no HTTP: each is answered in OpenAI's shape where it can be, and let go."""

import contextlib
import json
import time

import httpx
import pytest

from mtnlg.serve.limits import Limits
from tests.serve import raw
from tests.serve.fake_writer import FakeWriter
from tests.serve.running import running, until

LIMITS = Limits(read_secs=1, idle_secs=1, write_secs=1, connections=100)
ASKED = {"model": "fake", "prompt": "Hello"}


@pytest.fixture(scope="module")
def server():
    with running(FakeWriter(), limits=LIMITS) as server:
        yield server


def test_a_header_has_to_arrive(server):
    """However steadily it drips."""
    begin = time.monotonic()
    with raw.connection(server.port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
        sock.settimeout(0.1)
        answer = None
        while answer is None:
            sock.sendall(b"x-drip: 1\r\n")
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(4096)
        assert raw.refusal_of(answer)[0] == 408 and raw.read_all(sock) == b""
    assert 0.9 < time.monotonic() - begin < 2


def test_a_body_has_to_arrive(server):
    with raw.connection(server.port) as sock:
        sock.sendall(raw.post(ASKED)[:-5])
        status, error = raw.refusal_of(raw.read_all(sock))
    assert status == 408 and error["code"] == "request_timeout"


def test_the_second_request_has_to_arrive_too(server):
    with raw.connection(server.port) as sock:
        sock.sendall(raw.head("GET", "/health") + b"GET / HTTP/1.1\r\nho")
        answer = raw.read_all(sock)
    assert answer.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in answer


@pytest.mark.parametrize("before", [b"", raw.head("GET", "/health")], ids=["fresh", "idle"])
def test_a_silent_connection_is_closed_without_a_word(server, before):
    begin = time.monotonic()
    with raw.connection(server.port) as sock:
        sock.sendall(before)
        assert raw.read_all(sock).count(b"HTTP/1.1") == bool(before)
    assert 0.9 < time.monotonic() - begin < 2.5


def test_two_requests_sent_at_once_are_both_answered(server):
    with raw.connection(server.port) as sock:
        sock.sendall(raw.post(ASKED) + raw.head("GET", "/health", "connection: close"))
        answer = raw.read_all(sock)
    assert answer.count(b"HTTP/1.1 200") == 2 and answer.endswith(b'{"status":"alive"}')


def test_a_slow_answer_is_no_slow_request():
    """Time-outs are for what is received."""
    with running(FakeWriter(step_secs=0.1), limits=LIMITS) as server:
        assert server.http.post("/v1/completions", json={**ASKED, "max_tokens": 18}).status_code == 200


@pytest.mark.parametrize("num_bytes", [17_000, 300_000])
def test_a_long_header_is_refused(server, num_bytes):
    with raw.connection(server.port) as sock:
        sock.sendall(raw.head("GET", "/", "connection: close", "x-long: " + "x" * num_bytes))
        assert raw.refusal_of(raw.read_all(sock))[0] == 431


GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
    b"\r\n\r\nnonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\r\n\r\n",
    b"\x00" * 100 + b"\r\n\r\n",
)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_http(server, garbage):
    with raw.connection(server.port) as sock:
        sock.sendall(garbage)
        status, _ = raw.refusal_of(raw.read_all(sock))
    assert status in (400, 408)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"5" * 20_000, b"3\r\nabcdef\r\n"])
def test_a_chunked_body_that_is_broken(server, chunk):
    with raw.connection(server.port) as sock:
        sock.sendall(raw.head("POST", "/v1/completions", "content-type: application/json", "transfer-encoding: chunked") + chunk)
        assert raw.refusal_of(raw.read_all(sock))[0] in (400, 431)


def test_two_lengths_of_one_body(server):
    """Request smuggling: a length and chunks together are no request, or the chunks count and the connection ends."""
    with raw.connection(server.port) as sock:
        headers = ("content-type: application/json", "content-length: 6", "transfer-encoding: chunked", "connection: close")
        sock.sendall(raw.head("POST", "/v1/completions", *headers) + b"0\r\n\r\nGET /v1/models HTTP/1.1\r\n\r\n")
        assert raw.read_all(sock).count(b"HTTP/1.1") == 1


def test_many_slow_connections_do_not_hold_up_others(server):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(raw.connection(server.port)) for _ in range(60)]
        for sock in slow:
            sock.sendall(b"GET / HTTP/1.1\r\n")
        begin = time.monotonic()
        assert server.http.post("/v1/completions", json=ASKED).is_success and time.monotonic() - begin < 0.5
        assert all(b" 408 " in raw.read_all(sock) for sock in slow) and time.monotonic() - begin < 3


def test_connections_beyond_the_limit_are_refused_and_the_others_live():
    with running(FakeWriter(), limits=Limits(connections=3)) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(raw.connection(server.port)) for _ in range(3)]
        with raw.connection(server.port) as sock:
            sock.sendall(raw.head("GET", "/health"))
            assert raw.refusal_of(raw.read_all(sock))[0] == 503
        held[0].sendall(raw.head("GET", "/health", "connection: close"))
        assert raw.read_all(held[0]).startswith(b"HTTP/1.1 200")


def test_a_client_that_does_not_read_is_let_go():
    writer = FakeWriter(context=200_000, step_secs=0)
    with running(writer, limits=Limits(write_secs=1, request_tokens=200_000)) as server, raw.connection(server.port) as sock:
        sock.sendall(raw.post({**ASKED, "max_tokens": 150_000, "stream": True, "logprobs": 5}))
        assert until(lambda: writer.load().running)
        assert until(lambda: writer.num_cancelled or writer.load().written_tokens == 150_000, 20)
        assert until(lambda: not server.service._queues, 5)


def test_the_client_library_sees_the_refusal_of_a_body_it_is_still_sending(server):
    def body():
        for _ in range(40):
            yield b" " * 65_536

    response = httpx.post(f"{server.url}/v1/completions", content=body(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and json.loads(response.content)["error"]["code"] == "body_too_large"
