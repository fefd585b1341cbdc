"""The fields of each endpoint's requests, with OpenAI's names and defaults where OpenAI has them."""

from mtnlg.infer.truncate import POLICIES
from mtnlg.serve.fields import REQUIRED, Check, Field, boolean, items, number, one_of, part, read, text, unsupported, whole
from mtnlg.serve.limits import Limits
from mtnlg.serve.refusal import bad

_INT64 = (-(2**63), 2**63 - 1)
_ID_MAX = 2**31 - 1
_NAME_CHARS = 1000
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_COMPLETION_UNSUPPORTED = ("suffix", "best_of")
_CHAT_UNSUPPORTED = (
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format", "modalities", "audio"),
    *("prediction", "reasoning_effort", "verbosity", "web_search_options", "store", "metadata", "service_tier", "prompt_cache_key"),
)


def completion(limits: Limits) -> dict[str, Field]:
    """Of POST /v1/completions."""
    return {
        **_written(limits),
        "prompt": Field(REQUIRED, _prompts(limits)),
        "max_tokens": Field(16, whole(0, _ID_MAX)),
        "logprobs": Field(None, whole(0, limits.likeliest)),
        "echo": Field(False, boolean),
        **dict.fromkeys(_COMPLETION_UNSUPPORTED, Field(None, unsupported)),
    }


def chat(limits: Limits) -> dict[str, Field]:
    """Of POST /v1/chat/completions."""
    return {
        **_written(limits),
        "messages": Field(REQUIRED, items(_message(limits), limits.messages)),
        "max_tokens": Field(None, whole(1, _ID_MAX)),
        "max_completion_tokens": Field(None, whole(1, _ID_MAX)),
        "logprobs": Field(False, boolean),
        "top_logprobs": Field(None, whole(0, limits.likeliest)),
        **dict.fromkeys(_CHAT_UNSUPPORTED, Field(None, unsupported)),
    }


def embeddings(limits: Limits) -> dict[str, Field]:
    """Of POST /v1/embeddings."""
    return {
        "model": Field(REQUIRED, text(_NAME_CHARS)),
        "input": Field(REQUIRED, _one_or_many(text(least_chars=1, most_chars=limits.body_bytes), limits.inputs)),
        "encoding_format": Field("float", one_of("float", "base64")),
        "dimensions": Field(None, unsupported),
        "user": Field(None, text(_NAME_CHARS)),
    }


def _written(limits: Limits) -> dict[str, Field]:
    """What both ways of writing have; the second part is this project's own."""
    return {
        "model": Field(REQUIRED, text(_NAME_CHARS)),
        "temperature": Field(1.0, number(0, 2)),
        "top_p": Field(1.0, number(0, 1, above=True)),
        "n": Field(1, whole(1, limits.choices)),
        "stop": Field([], _one_or_many(text(limits.stop_chars, 1), limits.stops, least=0)),
        "seed": Field(None, whole(*_INT64)),
        "stream": Field(False, boolean),
        "stream_options": Field(None, part({"include_usage": Field(False, boolean)})),
        "presence_penalty": Field(0.0, number(-2, 2)),
        "frequency_penalty": Field(0.0, number(-2, 2)),
        "logit_bias": Field({}, _bias(limits.biases)),
        "user": Field(None, text(_NAME_CHARS)),
        "top_k": Field(0, whole(0, _ID_MAX)),
        "min_p": Field(0.0, number(0, 1)),
        "repetition_penalty": Field(1.0, number(0, 10, above=True)),
        "stop_token_ids": Field([], items(whole(0, _ID_MAX), limits.inputs, least=0)),
        "truncate": Field("error", one_of(*POLICIES)),
        "keep": Field(None, whole(0, _ID_MAX)),
        "slide": Field(False, boolean),
    }


def _one_or_many(check_item: Check, most: int, least: int = 1) -> Check:
    """A string or a list of them; always a list afterwards."""
    many = items(check_item, most, least)

    def check(value, name):
        return [check_item(value, name)] if isinstance(value, str) else many(value, name)

    return check


def _prompts(limits: Limits) -> Check:
    """A string, ids, or a list of either; afterwards a list of strings and lists of ids."""
    ids = items(whole(0, _ID_MAX), limits.request_tokens)

    def prompt(value, name):
        if not isinstance(value, (str, list)):
            raise bad(f"`{name}` must be a string or a list of token ids", name)
        return value if isinstance(value, str) else ids(value, name)

    many = items(prompt, limits.inputs)

    def check(value, name):
        one = isinstance(value, str) or (isinstance(value, list) and value and type(value[0]) is int)
        return [prompt(value, name)] if one else many(value, name)

    return check


def _bias(most: int) -> Check:
    strength = number(-100, 100)

    def check(value, name):
        if not isinstance(value, dict) or len(value) > most:
            raise bad(f"`{name}` must be an object of at most {most} token ids", name)
        if not all(key.isascii() and key.isdecimal() and len(key) <= len(str(_ID_MAX)) for key in value):
            raise bad(f"the keys of `{name}` must be token ids", name)
        return {int(key): strength(bias, name) for key, bias in value.items()}

    return check


def _message(limits: Limits) -> Check:
    """(role, content) of a message; a content of parts is their texts, joined."""
    text_part = part({"type": Field(REQUIRED, one_of("text")), "text": Field(REQUIRED, text())})
    parts = items(text_part, limits.inputs)
    required = {"role": Field(REQUIRED, one_of(*_ROLES)), "content": Field(REQUIRED, lambda value, name: value)}

    def check(value, name):
        if not isinstance(value, dict):
            raise bad(f"`{name}` must be an object", name)
        # An answer that comes back has fields that say nothing, as "refusal": null.
        found = read({key: held for key, held in value.items() if held is not None}, required, f"{name}.")
        content, where = found["content"], f"{name}.content"
        if isinstance(content, list):
            content = "".join(one["text"] for one in parts(content, where))
        return _ROLES[found["role"]], text()(content, where)

    return check
