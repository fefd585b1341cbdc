"""Hundreds of requests, legal, mutated and nonsense: none fails inside the server, none hangs, every error is in OpenAI's shape."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtnlg.serve import ask, schema
from mtnlg.serve.limits import Limits
from mtnlg.serve.refusal import Refusal
from tests.serve.fake_writer import FakeWriter
from tests.serve.running import running

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LIMITS = Limits()
COMMON = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "n": st.integers(1, 3),
    "stop": st.text(min_size=1, max_size=8) | st.lists(st.text(min_size=1, max_size=8), max_size=4),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stream": st.booleans(),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 255).map(str), st.floats(-100, 100), max_size=3),
    "user": st.text(max_size=9),
    "top_k": st.integers(0, 300),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.1, 10),
    "stop_token_ids": st.lists(st.integers(0, 255), max_size=3),
    "truncate": st.sampled_from(["error", "left", "middle"]),
    "keep": st.integers(0, 20),
    "slide": st.booleans(),
    "max_tokens": st.integers(1, 30),
}
IDS = st.lists(st.integers(0, 255), min_size=1, max_size=80)
PROMPT = st.text(min_size=1, max_size=80)
PROMPTS = PROMPT | IDS | st.lists(PROMPT, min_size=1, max_size=3) | st.lists(IDS, min_size=1, max_size=3)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": st.text(max_size=20)})
LEGAL = {
    "/v1/completions": st.fixed_dictionaries(
        {
            "model": st.just("fake"),
            "prompt": PROMPT | IDS | st.lists(PROMPT, min_size=1, max_size=3) | st.lists(IDS, min_size=1, max_size=3),
        },
        optional={**COMMON, "logprobs": st.integers(0, 5), "echo": st.booleans()},
    ),
    "/v1/chat/completions": st.fixed_dictionaries(
        {"model": st.just("fake"), "messages": st.lists(MESSAGE, min_size=1, max_size=3)}, optional={**COMMON, "logprobs": st.booleans()}
    ),
    "/v1/embeddings": st.fixed_dictionaries(
        {"model": st.just("fake"), "input": PROMPT | st.lists(PROMPT, min_size=1, max_size=3)},
        optional={"encoding_format": st.sampled_from(["float", "base64"])},
    ),
}
FIELDS = sorted({*schema.completion(LIMITS), *schema.chat(LIMITS), *schema.embeddings(LIMITS), "nonsense"})
MUTATION = st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=2)
many = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def server():
    """A context that some legal prompts do not fit into."""
    with running(FakeWriter(context=64)) as server:
        yield server


def asked(server, path: str, content: bytes):
    response = server.http.post(path, content=content, headers={"content-type": "application/json"})
    if response.status_code != 200:
        assert response.status_code in (400, 404), response.text
        told = response.json()
        assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
        assert type(told["error"]["message"]) is str and told["error"]["type"] == "invalid_request_error"
    elif response.headers["content-type"].startswith("text/event-stream"):
        *events, end = response.content.decode().split("\n\n")[:-1]
        assert end == "data: [DONE]" and all("error" not in json.loads(event[6:]) for event in events)
    else:
        assert "error" not in response.json()
    return response


def dumped(told) -> bytes:
    return json.dumps(told).encode()


@pytest.mark.parametrize("path", LEGAL)
@many
@given(data=st.data())
def test_legal_requests_are_answered(server, path, data):
    told = data.draw(LEGAL[path])
    response = asked(server, path, dumped(told))
    assert response.status_code == 200 or response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("path", LEGAL)
@many
@given(data=st.data())
def test_mutated_requests_are_answered_or_refused(server, path, data):
    asked(server, path, dumped({**data.draw(LEGAL[path]), **data.draw(MUTATION)}))


@pytest.mark.parametrize("path", LEGAL)
@many
@given(data=st.data())
def test_damaged_bytes_are_answered_or_refused(server, path, data):
    content = bytearray(dumped(data.draw(LEGAL[path])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        content = content or bytearray(b" ")
    asked(server, path, bytes(content))


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
