"""What a server is asked by strangers, legal, mutated and damaged; paths and methods; and what every answer has to look like."""

import json

import httpx
from hypothesis import strategies as st

from mtnlg.serve import schema
from mtnlg.serve.limits import Limits

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
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
FIELDS = sorted({*schema.completion(Limits()), *schema.chat(Limits()), *schema.embeddings(Limits()), "nonsense"})
MUTATION = st.dictionaries(st.sampled_from(FIELDS), ANYTHING, min_size=1, max_size=2)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
UNKNOWN = (
    "/v1",
    "/v1/",
    "/docs",
    "/health/",
    "/%2e%2e/etc/passwd",
    "/index.html",
    "/.env",
    "/page.js/x",
    "/v1/completions/",
)


def legal(model: str) -> dict[str, st.SearchStrategy[dict]]:
    """Of each endpoint, for a model of 256 ids or more."""
    name = st.just(model)
    return {
        "/v1/completions": st.fixed_dictionaries(
            {"model": name, "prompt": PROMPTS}, optional={**COMMON, "logprobs": st.integers(0, 5), "echo": st.booleans()}
        ),
        "/v1/chat/completions": st.fixed_dictionaries(
            {"model": name, "messages": st.lists(MESSAGE, min_size=1, max_size=3)}, optional={**COMMON, "logprobs": st.booleans()}
        ),
        "/v1/embeddings": st.fixed_dictionaries(
            {"model": name, "input": PROMPT | st.lists(PROMPT, min_size=1, max_size=3)},
            optional={"encoding_format": st.sampled_from(["float", "base64"])},
        ),
    }


@st.composite
def mutated(draw, asked: st.SearchStrategy[dict]) -> bytes:
    """One or two fields hold anything."""
    return dumped({**draw(asked), **draw(MUTATION)})


@st.composite
def damaged(draw, asked: st.SearchStrategy[dict]) -> bytes:
    """A few bytes are lost, added or exchanged."""
    content = bytearray(dumped(draw(asked)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content) - 1))
        content[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
        content = content or bytearray(b" ")
    return bytes(content)


def dumped(told) -> bytes:
    return json.dumps(told).encode()


def fault_of(response: httpx.Response) -> str | None:
    """What is wrong with an answer: a fault of the server, an error not in OpenAI's shape, a stream that does not end as it should."""
    if response.status_code >= 500:
        return f"{response.status_code}: {response.text[:200]}"
    try:
        if response.status_code != 200:
            return None if _is_error(response.json()) else f"{response.status_code} in another shape: {response.text[:200]}"
        if response.headers["content-type"].startswith("text/event-stream"):
            *events, end = response.content.decode().split("\n\n")[:-1]
            is_whole = end == "data: [DONE]" and all("error" not in json.loads(event[6:]) for event in events)
            return None if is_whole else f"a stream ends with {end[:200]}"
        return "an answer with an error" if "error" in response.json() else None
    except ValueError:
        return f"{response.status_code} that is not JSON: {response.text[:200]}"


def _is_error(told) -> bool:
    if not isinstance(told, dict) or set(told) != {"error"} or set(told["error"]) != {"message", "type", "param", "code"}:
        return False
    return type(told["error"]["message"]) is str and told["error"]["type"] in ("invalid_request_error", "rate_limit_error")
