"""Answers of /v1/completions and /v1/chat/completions, whole or in events, as what can be compared."""

import json

from benchmarks.soak.served import Server


def ask(server: Server, path: str, asked: dict, http=None) -> tuple[list[dict], bytes]:
    """(choices, the answer's bytes). Raises RuntimeError for anything but an answer."""
    response = (http or server.http).post(path, json={"model": "soak", **asked})
    if response.status_code != 200:
        raise RuntimeError(f"{response.status_code}: {response.text[:300]}")
    if asked.get("stream"):
        *events, end = response.content.decode().split("\n\n")[:-1]
        if end != "data: [DONE]":
            raise RuntimeError(f"a stream ends with {end[:300]}")
        return choices_of([json.loads(event.removeprefix("data: ")) for event in events]), response.content
    return choices_of([response.json()]), response.content


def choices_of(chunks: list[dict]) -> list[dict]:
    """Text, end and log-probabilities of each choice; the same for an answer in one piece and in many."""
    found: dict[int, dict] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        known = found.setdefault(choice["index"], {"text": "", "finish": None})
        said = choice.get("message") or choice.get("delta") or {}
        known["text"] += choice.get("text") or said.get("content") or ""
        known["finish"] = choice["finish_reason"] or known["finish"]
        for name, values in (choice["logprobs"] or {}).items():
            known[name] = known.get(name, []) + (values or [])
    return [found[index] for index in sorted(found)]
