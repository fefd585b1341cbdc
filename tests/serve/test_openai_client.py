"""The real `openai` client, streaming and not, on every endpoint."""

import math
import re

import numpy as np
import openai
import pytest

from mtnlg.serve.limits import Limits
from tests.serve.fake_writer import WIDTH, FakeWriter, written
from tests.serve.running import KEY, running


@pytest.fixture(scope="module")
def server():
    with running(FakeWriter(), keys=[KEY]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def text_of(prompt: str, num_tokens: int, seed: int = 0, temperature: float = 1.0) -> str:
    return written(prompt.encode(), num_tokens, seed, temperature).decode(errors="replace")


USER = [{"role": "user", "content": "Hello"}]
TEMPLATED = "<user>Hello\n<assistant>"


def test_completion(client):
    done = client.completions.create(model="fake", prompt="Hello", seed=3)
    (choice,) = done.choices
    assert choice.text == text_of("Hello", 16, 3) and choice.finish_reason == "length" and choice.logprobs is None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (5, 16, 21)
    assert done.object == "text_completion" and done.model == "fake" and done.seed == 3 and "cut" not in done.model_extra


def test_completion_of_many_prompts_and_choices(client):
    """Choice i of a prompt is what seed + i writes alone."""
    prompts = ["Hello", "World, hello"]
    done = client.completions.create(model="fake", prompt=prompts, n=3, seed=2**32 - 1, max_tokens=8)
    assert [choice.index for choice in done.choices] == list(range(6))
    seeds = [2**32 - 1, 0, 1]
    assert [choice.text for choice in done.choices] == [text_of(prompt, 8, seed) for prompt in prompts for seed in seeds]
    assert done.usage.prompt_tokens == 17 and done.usage.completion_tokens == 48


def test_ids_are_prompts_too(client):
    alone = client.completions.create(model="fake", prompt=list(b"Hello"), seed=1).choices[0].text
    several = client.completions.create(model="fake", prompt=[list(b"Hello"), list(b"World")], seed=1).choices
    assert alone == several[0].text == text_of("Hello", 16, 1) and several[1].text == text_of("World", 16, 1)


def test_without_a_seed_it_is_drawn_and_told(client):
    first, again = (client.completions.create(model="fake", prompt="Hello", max_tokens=40) for _ in range(2))
    assert first.seed != again.seed
    for done in (first, again):
        same = client.completions.create(model="fake", prompt="Hello", max_tokens=40, seed=done.seed)
        assert same.choices[0].text == done.choices[0].text


def test_stream_is_the_same_text(client):
    asked = {"model": "fake", "prompt": ["Hello", "World"], "n": 2, "seed": 5, "max_tokens": 60}
    whole = client.completions.create(**asked)
    texts, finishes, usage = [""] * 4, [None] * 4, None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        assert chunk.id.startswith("cmpl-") and chunk.seed == 5
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices] and finishes == ["length"] * 4
    assert usage == whole.usage


def test_stop(client):
    done = client.completions.create(model="fake", prompt="Hello", temperature=0, max_tokens=60, stop=["över", " fox"])
    assert done.choices[0].text == "The quick brown" and done.choices[0].finish_reason == "stop"
    done = client.completions.create(model="fake", prompt="Hello", temperature=0, max_tokens=60, extra_body={"stop_token_ids": [ord("k")]})
    assert done.choices[0].text == "The quick"


def test_logprobs_of_completions(client):
    done = client.completions.create(model="fake", prompt="Hello", temperature=0, max_tokens=30, logprobs=2)
    told = done.choices[0].logprobs
    assert told.tokens[:4] == ["T", "h", "e", " "] and told.tokens[20:23] == ["bytes:\\xe7", "bytes:\\x8b", "bytes:\\x90"]
    assert told.text_offset[:24] == [*range(21), 20, 20, 21]
    assert len(told.token_logprobs) == 30 and all(told.top_logprobs[i][told.tokens[i]] == told.token_logprobs[i] for i in range(30))
    none = client.completions.create(model="fake", prompt="Hello", max_tokens=2, logprobs=0).choices[0].logprobs
    assert [len(top) for top in none.top_logprobs] == [1, 1]


def test_echo(client):
    done = client.completions.create(model="fake", prompt="Hé", temperature=0, max_tokens=3, echo=True, logprobs=1)
    assert done.choices[0].text == "HéThe"
    told = done.choices[0].logprobs
    assert told.tokens == ["H", "bytes:\\xc3", "bytes:\\xa9", "T", "h", "e"] and told.text_offset == [0, 1, 1, 2, 3, 4]
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None and None not in told.token_logprobs[1:]
    scored = client.completions.create(model="fake", prompt=list("Hé".encode()), max_tokens=0, echo=True, logprobs=0)
    assert scored.choices[0].text == "Hé" and len(scored.choices[0].logprobs.tokens) == 3 and scored.usage.completion_tokens == 0
    streamed = list(client.completions.create(model="fake", prompt="Hé", temperature=0, max_tokens=3, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == "HéThe"
    only = list(client.completions.create(model="fake", prompt="Hé", max_tokens=0, echo=True, stream=True))
    assert [(chunk.choices[0].text, chunk.choices[0].finish_reason) for chunk in only] == [("Hé", "length")]


def test_chat(client):
    done = client.chat.completions.create(model="fake", messages=USER, seed=4, max_tokens=20, n=2)
    assert [choice.message.content for choice in done.choices] == [text_of(TEMPLATED, 20, seed) for seed in (4, 5)]
    assert {choice.message.role for choice in done.choices} == {"assistant"} and done.object == "chat.completion"
    assert done.usage.prompt_tokens == len(TEMPLATED) and done.usage.completion_tokens == 40


def test_chat_takes_back_its_answers_and_parts(client):
    answer = client.chat.completions.create(model="fake", messages=USER, max_completion_tokens=5, temperature=0).choices[0].message
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "Be brief"}, *USER, answer, {"role": "user", "content": parts}]
    done = client.chat.completions.create(model="fake", messages=messages, max_tokens=30, seed=1)
    assert done.choices[0].message.content == text_of("<system>Be brief\n<user>Hello\n<assistant>The q\n<user>ab\n<assistant>", 30, 1)


def test_chat_stream(client):
    asked = {"model": "fake", "messages": USER, "seed": 6, "max_tokens": 90, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    tokens = [token for chunk in chunks[:-1] if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert tokens == whole.choices[0].logprobs.content and len(tokens) == 90
    assert bytes(byte for token in tokens for byte in token.bytes).decode(errors="replace") == whole.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob for token in tokens)


def test_chat_answers_are_as_long_as_there_is_room(client):
    done = client.chat.completions.create(model="fake", messages=USER)
    assert done.usage.completion_tokens == 512 - len(TEMPLATED)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
def test_embeddings(client, server, encoding):
    texts = ["Hello", "Wörld"]
    done = client.embeddings.create(model="fake", input=texts, **encoding)
    expected, num_tokens = server.writer.embed(texts, lambda: True)
    np.testing.assert_array_equal([item.embedding for item in done.data], expected)
    assert expected.shape == (2, WIDTH) and done.usage.total_tokens == num_tokens == 11
    assert client.embeddings.create(model="fake", input="Hello", **encoding).data[0].embedding == expected[0].tolist()


def test_vectors_have_a_limit_of_tokens():
    with running(FakeWriter(), limits=Limits(request_tokens=10)) as server:
        for texts, status in (["12345", "12345"], 200), (["12345", "123456"], 400):
            assert server.http.post("/v1/embeddings", json={"model": "fake", "input": texts}).status_code == status


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "fake" and model.context == 512 and model.can_chat is True
    assert client.models.retrieve("fake") == model
    with pytest.raises(openai.NotFoundError, match="there is no model `other/model`; this server has `fake`"):
        client.models.retrieve("other/model")


def test_errors_are_the_clients_own(client, server):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="Hello")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="fake", prompt="Hello", temperature=3)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "refuse me"}])
    assert "template" in caught.value.message and "secret" not in caught.value.message
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as other, pytest.raises(openai.AuthenticationError):
        other.models.list()


def test_cuts_are_told(client):
    long = "".join(chr(97 + i % 26) for i in range(600))
    with pytest.raises(openai.BadRequestError, match="600 tokens") as caught:
        client.completions.create(model="fake", prompt=long)
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "prompt"
    for policy, keep, cut in (("left", 10, (10, 114)), ("left", None, (0, 104)), ("middle", None, (248, 352))):
        more = {"truncate": policy} | ({"keep": keep} if keep else {})
        done = client.completions.create(model="fake", prompt=long, seed=0, extra_body=more, echo=True)
        assert done.cut == {"from": cut[0], "to": cut[1]} and done.usage.prompt_tokens == 496
        read = long[: cut[0]] + long[cut[1] :]
        assert done.choices[0].text == read + text_of(read, 16)
    several = client.completions.create(model="fake", prompt=["Hello", long], extra_body={"truncate": "left"})
    assert "cut" not in several.model_extra and [choice.model_extra for choice in several.choices] == [{}, {"cut": {"from": 0, "to": 104}}]


def test_a_cut_conversation_keeps_what_the_system_said(client):
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "x" * 600}]
    done = client.chat.completions.create(model="fake", messages=messages, extra_body={"truncate": "left"})
    assert done.cut["from"] == len("<system>Be brief\n<user>") and done.usage.completion_tokens == 128
    assert math.isclose(done.usage.prompt_tokens, 512 - 128)


def test_the_largest_max_tokens_that_fits_is_told(client):
    """And it fits: one more does not."""
    messages = [{"role": "user", "content": "x" * 400}]
    for asked in (700, 512, 200):
        for create, given in ((client.completions.create, {"prompt": "x" * 400}), (client.chat.completions.create, {"messages": messages})):
            with pytest.raises(openai.BadRequestError, match="`max_tokens` can be at most") as caught:
                create(model="fake", max_tokens=asked, **given)
            most = int(re.search(r"at most (\d+)", caught.value.message)[1])
            assert create(model="fake", max_tokens=most, **given).usage.completion_tokens == most
            with pytest.raises(openai.BadRequestError, match=f"at most {most}\\b"):
                create(model="fake", max_tokens=most + 1, **given)
    with pytest.raises(openai.BadRequestError, match="at most 511"):
        client.completions.create(model="fake", prompt="x" * 600, max_tokens=512)
    with pytest.raises(openai.BadRequestError, match=r"65536 tokens together; `max_tokens` can be at most 16379\b"):
        client.completions.create(model="fake", prompt=["Hello"] * 2, n=2, max_tokens=16_380, extra_body={"slide": True})


def test_sliding_is_told(client):
    done = client.completions.create(model="fake", prompt="Hello", max_tokens=700, extra_body={"slide": True})
    assert done.usage.completion_tokens == 700 and done.slides == 1
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="fake", prompt="Hello", max_tokens=700)
