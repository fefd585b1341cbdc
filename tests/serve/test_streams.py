"""Framing, deadlines, queues and clients that leave: nothing is written for nobody, and nothing of one answer is in another."""

import contextlib
import json
import threading
import time

import httpx
import pytest

from mtnlg.core.errors import ConfigError, MtnlgError, TemporaryFailure
from mtnlg.serve.limits import Limits
from tests.serve import raw
from tests.serve.fake_writer import SENTENCE, FakeWriter, written
from tests.serve.running import running, until

ASKED = {"model": "fake", "prompt": "Hello", "temperature": 0}


def streamed(server, **asked) -> list[str]:
    """The data of each event, of which nothing but data is written."""
    content = server.http.post("/v1/completions", json={**ASKED, **asked, "stream": True}).content
    events = content.decode().split("\n\n")
    assert events.pop() == "" and all(event.startswith("data: ") and "\n" not in event for event in events)
    return [event.removeprefix("data: ") for event in events]


def test_framing():
    """Half characters are never sent, and no line ends inside an event."""
    with running(FakeWriter()) as server:
        response = server.http.post("/v1/completions", json={**ASKED, "max_tokens": 200, "stream": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8" and response.headers["cache-control"] == "no-store"
        *events, done = streamed(server, max_tokens=len(SENTENCE.encode()))
    assert done == "[DONE]"
    texts = [json.loads(event)["choices"][0]["text"] for event in events]
    assert "".join(texts) == SENTENCE and "\ufffd" not in "".join(texts)


def test_events_arrive_while_it_writes():
    with running(FakeWriter(step_secs=0.05)) as server:
        begin, secs = time.monotonic(), []
        with server.http.stream("POST", "/v1/completions", json={**ASKED, "max_tokens": 10, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    secs.append(time.monotonic() - begin)
    assert len(secs) == 10 and secs[0] < 0.25 and secs[-1] - secs[0] > 0.35


def test_a_deadline_for_whole_answers_and_streams():
    with running(FakeWriter(step_secs=0.02), limits=Limits(deadline_secs=1)) as server:
        begin = time.monotonic()
        response = server.http.post("/v1/completions", json={**ASKED, "max_tokens": 400})
        assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
        *events, last = streamed(server, max_tokens=400)
        assert json.loads(last)["error"]["code"] == "deadline_exceeded" and len(events) > 5
        assert 1.9 < time.monotonic() - begin < 3 and until(lambda: not server.writer.load().running) and server.writer.num_cancelled == 2


def test_a_score_that_takes_too_long():
    class Slow(FakeWriter):
        def score(self, ids, num_likeliest, is_wanted):
            time.sleep(1.5)
            return super().score(ids, num_likeliest, is_wanted)

    with running(Slow(), limits=Limits(deadline_secs=1, queue=1)) as server:
        response = server.http.post("/v1/completions", json={**ASKED, "echo": True, "logprobs": 0})
        assert response.status_code == 504
        # Nobody waits for it any more, but it still goes on: it counts.
        assert server.http.post("/v1/completions", json={**ASKED, "echo": True, "logprobs": 0}).status_code == 429
        assert until(lambda: not server.service._calls)


def test_what_nobody_waits_for_is_not_wanted_any_more():
    class Asking(FakeWriter):
        wanted, is_asked = [], threading.Event()

        def embed(self, texts, is_wanted):
            self.wanted.append(is_wanted())
            self.is_asked.set()
            assert until(lambda: not is_wanted())
            self.wanted.append(is_wanted())
            return super().embed(texts, is_wanted)

    with running(Asking()) as server, raw.connection(server.port) as sock:
        sock.sendall(raw.post({"model": "fake", "input": "x"}, path="/v1/embeddings"))
        assert Asking.is_asked.wait(10)
        sock.close()
        # The thread that answers learns of it a moment after the server has let the call go.
        assert until(lambda: Asking.wanted == [True, False] and not server.service._calls)


class SlowToAnswer(FakeWriter):
    def score(self, ids, num_likeliest, is_wanted):
        time.sleep(2)
        return super().score(ids, num_likeliest, is_wanted)

    def prompt_ids(self, text):
        if text == "slowly":
            time.sleep(2)
        return super().prompt_ids(text)


@pytest.mark.parametrize("more", [{"echo": True, "logprobs": 0}, {"prompt": "slowly"}], ids=["score", "read"])
def test_when_the_server_ends_what_blocks_is_not_waited_for(more):
    answers = []
    with running(SlowToAnswer(), limits=Limits(grace_secs=1)) as server:
        begin = time.monotonic()
        thread = threading.Thread(target=lambda: answers.append(server.http.post("/v1/completions", json={**ASKED, **more})))
        thread.start()
        time.sleep(0.3)
        server.stop()
        thread.join()
        assert time.monotonic() - begin < 1.9
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "unavailable"


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("it does not fit", "/a/path"), 400), (TemporaryFailure("no memory"), 503), (MtnlgError("in /a/path"), 500)],
)
def test_a_job_that_fails(error, status):
    with running(FakeWriter(step_secs=0.01)) as server:
        server.writer.failure = error
        response = server.http.post("/v1/completions", json=ASKED)
        assert response.status_code == status and "/a/path" not in response.text
        server.writer.failure = error
        (last,) = streamed(server)
        assert json.loads(last) == response.json() and until(lambda: not server.service._queues)
        assert server.http.post("/v1/completions", json=ASKED).is_success


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_frees_its_row(stream):
    """Fifty leave; within a second nothing is written any more, and who comes after gets what anybody gets."""
    writer = FakeWriter(step_secs=0.005, context=10_000)
    with running(writer) as server:
        expected = server.http.post("/v1/completions", json={**ASKED, "max_tokens": 50}).json()["choices"]
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                sock = stack.enter_context(raw.connection(server.port))
                sock.sendall(raw.post({**ASKED, "max_tokens": 5000, "stream": stream}))
            assert until(lambda: writer.load().running == 8 and writer.load().queued == 42)
        assert until(lambda: writer.load()[:2] == (0, 0), 1.0) and writer.num_cancelled == 50
        assert server.http.post("/v1/completions", json={**ASKED, "max_tokens": 50}).json()["choices"] == expected


def test_exactly_those_beyond_the_queue_are_refused_and_none_is_lost():
    """Rows and queue hold 2 + 3 texts, thirty come."""
    writer = FakeWriter(step_secs=0.02, max_rows=2, max_queue=3)
    with running(writer) as server:
        answers = []

        def ask(number):
            answers.append(server.http.post("/v1/completions", json={**ASKED, "max_tokens": 40, "seed": number}))

        hold = [threading.Thread(target=ask, args=(number,)) for number in range(30)]
        for thread in hold:
            thread.start()
        for thread in hold:
            thread.join()
    by_status = [answer.status_code for answer in answers]
    assert by_status.count(200) == 5 and by_status.count(429) == 25
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
    assert all(answer.json()["usage"]["completion_tokens"] == 40 for answer in answers if answer.is_success)


def test_a_request_of_more_choices_than_ever_fit_is_a_bad_one():
    with running(FakeWriter(), limits=Limits(queue=4)) as server:
        assert server.http.post("/v1/completions", json={**ASKED, "n": 5}).status_code == 400


def test_a_hundred_at_once_are_each_answered_with_their_own():
    writer = FakeWriter(max_rows=4, max_queue=100)
    with running(writer) as server:
        texts = {}

        def ask(number):
            asked = {"model": "fake", "prompt": f"tenant {number}", "seed": number, "max_tokens": 60}
            texts[number] = server.http.post("/v1/completions", json=asked).json()["choices"][0]["text"]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert texts == {n: written(f"tenant {n}".encode(), 60, n).decode(errors="replace") for n in range(100)}


def test_streams_can_be_left_by_a_library_too():
    writer = FakeWriter(step_secs=0.01)
    with (
        running(writer) as server,
        httpx.stream("POST", f"{server.url}/v1/completions", json={**ASKED, "max_tokens": 400, "stream": True}) as r,
    ):
        next(r.iter_lines())
        r.close()
        assert until(lambda: writer.num_cancelled == 1)
