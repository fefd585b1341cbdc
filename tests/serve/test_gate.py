"""Keys, sizes, hosts, how many at once; every error is in OpenAI's shape and tells nothing of the inside."""

import itertools
import json
import logging
import threading

import httpx
import pytest

from mtnlg.serve.app import OPEN_PATHS
from mtnlg.serve.limits import Limits
from tests.serve import raw
from tests.serve.asking import METHODS, UNKNOWN
from tests.serve.fake_writer import FakeWriter
from tests.serve.running import KEY, running, until

OTHER_KEY = "another key, 4567890"
GUARDED = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/fake", "/metrics")
ASKED = {"model": "fake", "prompt": "Hello"}


@pytest.fixture(scope="module")
def guarded():
    with running(FakeWriter(), keys=[KEY, OTHER_KEY]) as server:
        yield server


def shaped(response: httpx.Response) -> dict:
    told = response.json()
    assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    assert told["error"]["message"] and response.headers["content-type"] == "application/json"
    return told["error"]


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {KEY}", "Bearer", KEY])
def test_everything_but_the_page_and_the_probes_needs_the_key(guarded, authorization):
    headers = {"authorization": authorization} if authorization else {}
    with httpx.Client(base_url=guarded.url, headers=headers) as stranger:
        for method, path in itertools.product(METHODS, (*GUARDED, *UNKNOWN, *OPEN_PATHS)):
            response = stranger.request(method, path)
            if path in OPEN_PATHS and method in ("GET", "HEAD"):
                assert response.status_code == 200, (method, path)
                continue
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer", (method, path)
            if method != "HEAD":
                told = shaped(response)
                is_unknown = authorization == "Bearer wrong"
                wanted = "this key is not known" if is_unknown else "a key is needed: Authorization: Bearer KEY"
                assert (told["code"], told["message"]) == ("invalid_api_key", wanted)


def test_two_keys_in_one_request_are_none(guarded):
    with raw.connection(guarded.port) as sock:
        twice = [f"authorization: Bearer {KEY}"] * 2
        sock.sendall(raw.head("GET", "/v1/models", *twice, "connection: close"))
        assert raw.refusal_of(raw.read_all(sock))[0] == 401


def test_each_key_opens_everything(guarded):
    for key in (KEY, OTHER_KEY):
        assert guarded.http.get("/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200


def test_with_the_key_nothing_is_hidden_behind_401(guarded):
    for method, path in itertools.product(METHODS, (*GUARDED, *UNKNOWN, *OPEN_PATHS)):
        response = guarded.http.request(method, path)
        if path in UNKNOWN:
            assert response.status_code == 404
        elif path in GUARDED[:3]:
            assert response.status_code == (415 if method == "POST" else 405)
        else:
            assert response.status_code == (200 if method in ("GET", "HEAD") else 405)
        if response.status_code >= 400 and method != "HEAD":
            told = shaped(response)
            if response.status_code == 405:
                assert told["message"] == ("use POST" if path in GUARDED[:3] else "use GET")


def test_every_answer_has_its_own_number(guarded):
    numbers = {guarded.http.get(path).headers["x-request-id"] for path in ("/health", "/nothing", "/v1/models", "/health")}
    assert len(numbers) == 4


def test_the_page_may_load_nothing_from_elsewhere(guarded):
    response = guarded.http.get("/")
    policy = response.headers["content-security-policy"]
    assert response.headers["content-type"].startswith("text/html") and response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy


def test_no_other_site_is_told_anything(guarded):
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for response in (guarded.http.options("/v1/completions", headers=asked), guarded.http.get("/v1/models", headers=asked)):
        assert not any(name.startswith("access-control") for name in response.headers)


def test_without_a_key_only_this_machines_names_are_answered():
    with running(FakeWriter()) as server:
        assert server.http.get("/v1/models").status_code == 200
        for host in ("127.0.0.1:1", "LOCALHOST", "localhost:8000"):
            assert server.http.get("/v1/models", headers={"host": host}).status_code == 200
        for path in ("/", "/v1/models", "/health"):
            response = server.http.get(path, headers={"host": "rebound.example"})
            assert response.status_code == 403 and shaped(response)["code"] == "forbidden_host"
            with raw.connection(server.port) as sock:  # which HTTP/1.0 may leave out
                sock.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                status, told = raw.refusal_of(raw.read_all(sock))
                assert status == 403 and told["code"] == "forbidden_host"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_foreign_page_can_send_is_not_read(guarded, kind):
    response = guarded.http.post("/v1/completions", content=json.dumps(ASKED), headers={"content-type": kind})
    assert response.status_code == 415 and shaped(response)


def test_a_body_that_says_it_is_too_long_is_not_read(guarded):
    with raw.connection(guarded.port) as sock:
        sock.sendall(raw.head("POST", "/v1/completions", f"authorization: Bearer {KEY}", "content-length: 1000001"))
        assert b" 413 " in sock.recv(4096)


def rss_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_chunked_body_without_end_is_refused_and_not_kept(guarded):
    """Of 1 GB that the client would like to send."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    before, sent_bytes = rss_bytes(), 0
    with raw.connection(guarded.port) as sock:
        headers = (f"authorization: Bearer {KEY}", "content-type: application/json", "transfer-encoding: chunked")
        sock.sendall(raw.head("POST", "/v1/completions", *headers))
        try:
            while sent_bytes < 1 << 30:
                sock.sendall(chunk)
                sent_bytes += len(chunk)
        except OSError:
            pass
        answer = sock.recv(4096)
    assert raw.refusal_of(answer)[0] == 413 and sent_bytes < 64 << 20
    assert rss_bytes() - before < 10 << 20


def test_a_body_as_long_as_allowed_is_read(guarded):
    content = json.dumps({**ASKED, "prompt": "x"}).encode()
    assert guarded.http.post("/v1/completions", content=content.ljust(1_000_000), headers={"content-type": "application/json"}).is_success
    response = guarded.http.post("/v1/completions", content=content.ljust(1_000_001), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_one_connection_may_bring_many_bodies_that_are_too_long(guarded):
    """What is dropped of each counts for it alone: in an hour of traffic a connection was once reset."""
    with raw.connection(guarded.port) as sock:
        for _ in range(6):
            sock.sendall(raw.head("POST", "/v1/completions", f"authorization: Bearer {KEY}", "content-length: 1000001"))
            answer = b""
            while b"body_too_large" not in answer:
                answer += (part := sock.recv(4096))
                assert part, "the connection was closed"
            sock.sendall(b" " * 1_000_001)


def test_each_key_has_so_many_requests_at_once():
    with running(FakeWriter(step_secs=0.01, context=4096), keys=[KEY, OTHER_KEY], limits=Limits(per_key=2)) as server:
        asked = {**ASKED, "max_tokens": 3000}
        threads = [threading.Thread(target=lambda: leave(server, asked)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert until(lambda: server.writer.load().running == 2)
        response = server.http.post("/v1/completions", json=ASKED)
        assert response.status_code == 429 and response.headers["retry-after"] == "1" and shaped(response)["type"] == "rate_limit_error"
        assert server.http.post("/v1/completions", json=ASKED, headers={"authorization": f"Bearer {OTHER_KEY}"}).is_success
        for thread in threads:
            thread.join()
        assert until(lambda: server.http.post("/v1/completions", json=ASKED).is_success)


def leave(server, asked) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=asked, timeout=0.7)


class Broken(FakeWriter):
    def chat_ids(self, messages):
        raise RuntimeError("a secret in /home/somebody/model")

    def score(self, ids, num_likeliest, is_wanted):
        raise RuntimeError("a secret in /home/somebody/model")

    def submit(self, job, notify):
        raise RuntimeError("a secret in /home/somebody/model")


def test_a_fault_is_told_without_its_text_and_logged_with_it(caplog):
    chat = {"model": "fake", "messages": [{"role": "user", "content": "a private message"}]}
    with running(Broken()) as server, caplog.at_level(logging.ERROR):
        echo = {**ASKED, "echo": True, "logprobs": 1}
        for path, asked in (("/v1/chat/completions", chat), ("/v1/completions", ASKED), ("/v1/completions", echo)):
            caplog.clear()
            response = server.http.post(path, json=asked)
            assert response.status_code == 500 and shaped(response)["type"] == "server_error"
            assert "secret" not in response.text and "Traceback" not in response.text and "/home" not in response.text
            assert until(lambda: "a secret in" in caplog.text) and response.headers["x-request-id"] in caplog.text
            assert "a private message" not in caplog.text
        assert server.http.get("/health").is_success


def test_while_the_model_loads_the_server_lives_and_is_not_ready():
    with running(None) as server:
        assert server.http.get("/health").status_code == 200 and server.http.get("/").status_code == 200
        response = server.http.get("/ready")
        assert response.status_code == 503 and shaped(response)["code"] == "loading"
        assert server.http.post("/v1/completions", json=ASKED).status_code == 503 == server.http.get("/v1/models").status_code
        assert server.http.get("/metrics").status_code == 200
        server.service.writer = FakeWriter()
        assert server.http.get("/ready").status_code == 200
        server.service.draining = True
        assert server.http.get("/ready").status_code == 503 and server.http.get("/health").status_code == 200
        assert server.http.post("/v1/completions", json=ASKED).status_code == 503


def test_metrics_count_and_say_nothing_of_texts():
    with running(FakeWriter()) as server:
        server.http.post("/v1/completions", json={**ASKED, "prompt": "a private prompt", "max_tokens": 5})
        for path in ("/secret-path", "/other-secret", "/v1/models/secret"):
            server.http.get(path)
        told = server.http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    assert lines['mtnlg_requests_total{route="/v1/completions",status="200"}'] == "1.0"
    assert lines['mtnlg_requests_total{route="other",status="404"}'] == "2.0"
    assert (lines["mtnlg_prompt_tokens_total"], lines["mtnlg_written_tokens_total"], lines["mtnlg_rows"]) == ("16.0", "5.0", "8.0")
    assert lines["mtnlg_first_token_seconds_count"] == "1.0" and float(lines["mtnlg_token_seconds_count"]) <= 4
    assert "secret" not in told and "private" not in told
