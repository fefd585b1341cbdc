"""Figures 5 and 6: more requests than there is room for, and clients that leave."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Figure
from benchmarks.soak.answers import ask
from benchmarks.soak.served import ENDLESS, KEYS, ROWS, Server, bar, client, until

_MOST_SECS = 1.0
_EVENTS_READ = 3


def too_many(server: Server, num_extra: int, num_tokens: int) -> Figure:
    """Figure 5: every row and every place of the queue is taken by a long request; then come as many more at once as are extra."""
    room, asked = server.room, {**ENDLESS, "model": "soak", "prompt": "the cat", "max_tokens": num_tokens, "seed": 5}

    def answered(_) -> tuple[int, int]:
        """(status, tokens)."""
        response = http.post("/v1/completions", json=asked)
        told = response.json()
        return response.status_code, told["usage"]["completion_tokens"] if response.is_success else 0

    with client(server.url, KEYS[0], 180) as http, ThreadPoolExecutor(room + num_extra) as pool, bar(room + num_extra, "requests") as shown:
        held = [pool.submit(answered, place) for place in range(room)]
        if until(lambda: server.num_under_way() == room, 30) is None:
            raise RuntimeError(f"{server.num_under_way():.0f} of {room} requests were taken on")
        extra = [pool.submit(answered, place) for place in range(num_extra)]
        for future in (*extra, *held):
            future.result()
            shown.update()
    return judge_crowd([one.result() for one in held], [one.result() for one in extra], num_tokens)


def judge_crowd(held: list[tuple[int, int]], extra: list[tuple[int, int]], num_tokens: int) -> Figure:
    """(status, tokens) of each request: those that there was room for, and the others."""
    lost = sum(one != (200, num_tokens) for one in held)
    statuses = Counter(status for status, _ in extra)
    measured = f"{', '.join(f'{count} x {status}' for status, count in sorted(statuses.items()))}; {lost} of {len(held)} lost"
    return Figure(f"exactly {len(extra)} x 429, 0 lost", measured, statuses == {429: len(extra)} and not lost)


def leavers(server: Server, number: int) -> Figure:
    """Figure 6: clients leave in the midst of their streams, as many at a time as there are rows but one; somebody else's text is written
    in that one meanwhile, and again afterwards."""
    asked = {"prompt": "the dog lay under", "max_tokens": 60, "seed": 6, "logprobs": 5, "temperature": 1.0}
    before, slowest_secs, changed, left = ask(server, "/v1/completions", asked)[0], 0.0, 0, 0
    with bar(number, "clients that leave") as shown:
        while left < number:
            wave = min(ROWS - 1, number - left)
            barrier = threading.Barrier(wave + 1)
            leaving = [threading.Thread(target=_leave, args=(server, place, barrier)) for place in range(wave)]
            [thread.start() for thread in leaving]
            barrier.wait(30)  # all are being written
            changed += ask(server, "/v1/completions", asked)[0] != before
            barrier.wait(30)
            secs = until(lambda: server.num_under_way() == 0, 30)
            [thread.join() for thread in leaving]
            slowest_secs = max(slowest_secs, float("inf") if secs is None else secs)
            changed += ask(server, "/v1/completions", asked)[0] != before
            left += wave
            shown.update(wave)
    measured = f"{left} left; rows free after {slowest_secs:.2f} s at most; {changed} later or concurrent outputs changed"
    return Figure("rows free within 1 s, later outputs unchanged", measured, slowest_secs <= _MOST_SECS and not changed)


def _leave(server: Server, seed: int, barrier: threading.Barrier) -> None:
    asked = {**ENDLESS, "model": "soak", "prompt": "the cat sat", "seed": seed, "stream": True}
    with client(server.url, KEYS[0]) as http, http.stream("POST", "/v1/completions", json=asked) as response:
        events = (line for line in response.iter_lines() if line)
        for _ in range(_EVENTS_READ):
            json.loads(next(events).removeprefix("data: "))
        barrier.wait(30)
        barrier.wait(30)
