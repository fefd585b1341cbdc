"""Hundreds of requests, legal, mutated and nonsense: none fails inside the server, none hangs, every error is in OpenAI's shape."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtnlg.serve import ask
from mtnlg.serve.limits import Limits
from mtnlg.serve.refusal import Refusal
from tests.serve import asking
from tests.serve.asking import dumped
from tests.serve.fake_writer import FakeWriter
from tests.serve.running import running

LIMITS = Limits()
LEGAL = asking.legal("fake")
many = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server():
    """A context that some legal prompts do not fit into."""
    with running(FakeWriter(context=64)) as server:
        yield server


def asked(server, path: str, content: bytes):
    response = server.http.post(path, content=content, headers={"content-type": "application/json"})
    assert asking.fault_of(response) is None and response.status_code in (200, 400, 404), response.text
    return response


@pytest.mark.parametrize("path", LEGAL)
@many
@given(data=st.data())
def test_legal_requests_are_answered(server, path, data):
    response = asked(server, path, dumped(data.draw(LEGAL[path])))
    assert response.status_code == 200 or response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", LEGAL)
@many
@given(data=st.data())
def test_mutated_requests_are_answered_or_refused(server, path, data):
    asked(server, path, data.draw(asking.mutated(LEGAL[path])))


@pytest.mark.parametrize("path", LEGAL)
@many
@given(data=st.data())
def test_damaged_bytes_are_answered_or_refused(server, path, data):
    asked(server, path, data.draw(asking.damaged(LEGAL[path])))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe{\x00}\x00",
        b'{"model": "fake", "model": "fake", "prompt": "x"}',
        b'{"model": "fake", "prompt": "x", "logit_bias": {"1": 1, "1": 2}}',
        b'{"model": "fake", "prompt": "x", "temperature": NaN}',
        b'{"model": "fake", "prompt": "x", "temperature": -Infinity}',
        b'{"model": "fake", "prompt": "x", "temperature": 1e999}',
        b'{"model": "fake", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "fake", "prompt": "\\ud800"}',
        b'{"model": "fake", "prompt": "x", "\\uDC00": 1}',
        b'{"model": "fake", "prompt": "\xed\xa0\x80"}',
        b'{"model": "fake", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"model": "fake", "prompt": "x", "n": true}',
        b'{"model": "fake", "prompt": "x", "max_tokens": 1.0}',
        b'{"model": "fake", "prompt": "x", "stop": ["a", "b", "c", "d", "e"]}',
        b'{"model": "fake", "prompt": "x", "stop": "' + b"s" * 65 + b'"}',
        b'{"model": "fake", "prompt": "x", "stop": ""}',
        b'{"model": "fake", "prompt": "x", "n": 9}',
        b'{"model": "fake", "prompt": "x", "logprobs": 6}',
        b'{"model": "fake", "prompt": "x", "max_tokens": 0}',
        b'{"model": "fake", "prompt": "x", "best_of": 2}',
        b'{"model": "fake", "prompt": "x", "suffix": "y"}',
        b'{"model": "fake", "prompt": "x", "stream_options": {"include_usage": true}}',
        b'{"model": "fake", "prompt": [1, 256]}',
        b'{"model": "fake", "prompt": []}',
        b'{"model": "fake", "prompt": ""}',
        b'{"model": "fake", "prompt": "x", "logit_bias": {"256": 1}}',
        b'{"model": "fake", "prompt": "x", "logit_bias": {"\xd9\xa1": 1}}',
        b'{"model": "fake", "prompt": "x", "stop_token_ids": [256]}',
        b'{"model": "fake", "messages": []}',
    ],
    ids=range(35),
)
def test_each_of_these_is_refused(server, content):
    assert asked(server, "/v1/completions", content).status_code == 400


@pytest.mark.parametrize("field", ["tools", "functions", "response_format", "tool_choice"])
def test_what_is_not_supported_is_named(server, field):
    told = {"model": "fake", "messages": [{"role": "user", "content": "x"}], field: []}
    error = asked(server, "/v1/chat/completions", dumped(told)).json()["error"]
    assert error["param"] == field and error["code"] == "unsupported_field"
    assert asked(server, "/v1/chat/completions", dumped({**told, field: None})).status_code == 200


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": "x", "name": "y"}, "messages[0].name"),
        ("x", "messages[0]"),
    ],
)
def test_a_message_that_is_none_is_named(server, message, param):
    error = asked(server, "/v1/chat/completions", dumped({"model": "fake", "messages": [message]})).json()["error"]
    assert error["param"] == param


def test_chat_without_a_template_says_so():
    writer = FakeWriter(can_chat=False)
    try:
        with pytest.raises(Refusal, match="no chat template"):
            ask.chat(dumped({"model": "fake", "messages": [{"role": "user", "content": "x"}]}), writer, LIMITS)
    finally:
        writer.close(0)
