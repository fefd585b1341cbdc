"""Figures 9 and 10: what a client is told depends on nobody else."""

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Figure
from benchmarks.soak.answers import ask
from benchmarks.soak.served import KEYS, Server, bar, client

_WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "lay", "under", "the", "table"]
_OPENING = "You are a helpful cat. " + "the cat sat on the mat, and the dog lay under the table. " * 12  # more than a block of the cache

Own = Callable[[], contextlib.AbstractContextManager[Server]]


def together(server: Server, number: int) -> Figure:
    """Figure 9: seeded requests of all kinds, one after the other, and then all at once."""
    requests = [_seeded(place) for place in range(number)]
    with bar(2 * number, "requests") as shown, client(server.url, KEYS[0], 180) as http, ThreadPoolExecutor(number) as pool:
        barrier = threading.Barrier(number)

        def answered(asked: dict, waits: bool):
            if waits:
                barrier.wait(60)
            found = ask(server, "/v1/completions", asked, http)[0]
            shown.update()
            return found

        alone = [answered(asked, waits=False) for asked in requests]
        streams = [asked | {"stream": place % 2 == 0} for place, asked in enumerate(requests)]
        at_once = list(pool.map(answered, streams, itertools.repeat(True)))
    return judge_together(alone, at_once)


def judge_together(alone: Sequence, at_once: Sequence) -> Figure:
    """Both: the choices of each request."""
    others = sum(a != b for a, b in zip(alone, at_once, strict=True))
    num_tokens = sum(len(choice["tokens"]) for choices in alone for choice in choices)
    num_texts = len({choice["text"] for choices in alone for choice in choices})
    measured = f"{others} of {len(alone)} differ; {num_tokens} tokens with their log-probabilities, {num_texts} different texts"
    return Figure(f"{len(alone)} at once get the tokens they get alone", measured, not others and num_texts > len(alone) // 2)


def _seeded(place: int) -> dict:
    dice = random.Random(place)
    asked = {
        "prompt": " ".join(dice.choices(_WORDS, k=dice.randint(1, 120))),
        "max_tokens": dice.randint(4, 60),
        "seed": place,
        "temperature": dice.choice((0, 0.7, 1, 1.5)),
        "logprobs": dice.randint(0, 5),
    }
    return asked | dice.choice(
        (
            {"top_k": 20},
            {"top_p": 0.9},
            {"min_p": 0.05},
            {"repetition_penalty": 1.3},
            {"presence_penalty": 1},
            {"stop": "cat"},
            {"logit_bias": {"9": 4}},
        )
    )


def tenants(server: Server, own: Own, number: int) -> Figure:
    """Figure 10: two clients, each with its key and a secret in all its prompts, which have a long opening in common. Both ask at once,
    in two threads each; each answer is compared with that of a server that nobody else has asked. `echo` shows that a secret in an answer
    is seen.
    """
    secrets = [f"{random.Random(place).getrandbits(64):016x}" for place in range(2)]
    before, alone = server.measure("mtnlg_reused_tokens_total"), []
    with bar(4 * number, "requests") as shown:
        for key, secret in zip(KEYS, secrets, strict=True):
            with own() as single:
                alone.append(_answers(single, key, secret, number, 1, shown))
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda one: _answers(server, *one, number, 2, shown), zip(KEYS, secrets, strict=True)))
    return judge_tenants(secrets, alone, both, server.measure("mtnlg_reused_tokens_total") - before)


def judge_tenants(secrets: Sequence[str], alone: Sequence, both: Sequence, reused_tokens: float) -> Figure:
    """alone, both: of each tenant, (choices, bytes) of each request."""
    others = sum(a != b for own, found in zip(alone, both, strict=True) for (a, _), (b, _) in zip(own, found, strict=True))
    contents = [b"".join(content for _, content in found) for found in both]
    leaks = sum(contents[place].count(secrets[1 - place].encode()) for place in range(2))
    echoes = [contents[place].count(secrets[place].encode()) for place in range(2)]
    measured = f"{others} of {sum(map(len, both))} answers differ from a server of one's own; the other's secret seen {leaks} times, "
    measured += f"one's own {sum(echoes)} times; {reused_tokens:.0f} tokens reused"
    return Figure("two tenants never see each other's text", measured, not others and not leaks and all(echoes) and reused_tokens > 0)


def _answers(server: Server, key: str, secret: str, number: int, num_threads: int, shown) -> list:
    def answered(place: int):
        found = ask(server, *_private(secret, place), http)
        shown.update()
        return found

    with client(server.url, key) as http, ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(answered, range(number)))


def _private(secret: str, place: int) -> tuple[str, dict]:
    """(path, request) of one of a tenant's: a conversation that grows, or a text that is told with its prompt."""
    opening, settings = f"{_OPENING}The secret is {secret}.", {"seed": place, "max_tokens": 24, "stream": place % 4 < 2}
    if place % 2:
        return "/v1/completions", {"prompt": f"{opening} Number {place}:", "echo": True, "logprobs": 2, **settings}
    messages = [{"role": "system", "content": opening}]
    messages += [{"role": "assistant" if turn % 2 else "user", "content": f"What is it? {turn}"} for turn in range(place % 5 | 1)]
    return "/v1/chat/completions", {"messages": messages, "logprobs": True, "top_logprobs": 3, **settings}
