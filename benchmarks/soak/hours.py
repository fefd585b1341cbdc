"""Figure 8: mixed traffic for a long time."""

import random
import threading
import time
from collections import Counter

import httpx
import numpy as np

from benchmarks.figures import Figure
from benchmarks.soak.answers import ask
from benchmarks.soak.served import ENDLESS, KEYS, Server, bar, client

_CLIENTS = 6
_EVERY_SECS = 0.5
_MOST_MB_A_MINUTE = 1.0
_WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "lay", "under", "the", "table"]


def soak(server: Server, minutes: float) -> Figure:
    """Every client has its own dice and asks one request after the other. Memory is looked at twice a second, and its slope is that of the
    straight line through all that was seen after the warm-up, the first tenth of the time, at least a minute or else half of it.
    """
    traffic, begin = _Traffic(server), time.monotonic()
    seen = []
    with bar(round(60 * minutes), "seconds") as shown:
        while (secs := time.monotonic() - begin) < 60 * minutes:
            seen.append((secs / 60, server.rss_bytes() / 1e6))
            shown.update(round(secs) - shown.n)
            time.sleep(_EVERY_SECS)
    traffic.stop()
    if num_left := server.num_under_way():
        traffic.faults.append(f"{num_left:.0f} texts are still written")
    if log := server.log.read_text():
        traffic.faults.append(log[-300:])
    return judge_soak(minutes, seen, traffic.counts, traffic.faults)


def judge_soak(minutes: float, seen: list[tuple[float, float]], counts: Counter, faults: list[str]) -> Figure:
    """seen: (minute, MB)."""
    warm_up = max(minutes / 10, min(1, minutes / 2))
    after = [one for one in seen if one[0] >= warm_up]
    slope = float(np.polyfit(*zip(*after, strict=True), 1)[0])
    told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    measured = f"{minutes:g} minutes, {counts.total()} requests ({told}): RSS {after[0][1]:.0f} to {after[-1][1]:.0f} MB, "
    measured += f"{slope:+.2f} MB/min; {len(faults)} errors {faults[:1] or ''}"
    return Figure("RSS slope under 1 MB/min after the warm-up, 0 errors", measured.strip(), slope < _MOST_MB_A_MINUTE and not faults)


class _Traffic:
    """Clients until `stop`."""

    def __init__(self, server: Server):
        self.counts, self.faults = Counter(), []
        self._server, self._known, self._lock = server, {}, threading.Lock()
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(seed,)) for seed in range(_CLIENTS)]
        [thread.start() for thread in self._threads]

    def stop(self) -> None:
        self._ends.set()
        [thread.join() for thread in self._threads]

    def _ask_on(self, seed: int) -> None:
        dice = random.Random(seed)
        kinds = (self._completion, self._chat, self._known_text, self._leaver, self._vectors, self._echo, self._refused)
        with client(self._server.url, KEYS[seed % len(KEYS)]) as http:
            while not self._ends.is_set():
                kind = dice.choice(kinds)
                try:
                    fault = kind(dice, http)
                except (RuntimeError, httpx.TransportError) as error:
                    fault = repr(error)
                with self._lock:
                    self.counts[kind.__name__.strip("_")] += 1
                    self.faults += [fault] if fault else []

    def _completion(self, dice, http) -> str | None:
        asked = {"prompt": _text(dice), "max_tokens": dice.randint(1, 60), "n": dice.randint(1, 2), "stream": dice.random() < 0.5}
        asked |= {
            "temperature": dice.choice((0, 0.7, 1)),
            "top_p": dice.choice((0.5, 1)),
            "stop": "cat",
            "logprobs": dice.choice((None, 3)),
        }
        ask(self._server, "/v1/completions", asked, http)

    def _chat(self, dice, http) -> str | None:
        messages = [{"role": role, "content": _text(dice)} for role in ("system", "user", "assistant", "user")]
        asked = {"messages": messages, "max_tokens": dice.randint(1, 40), "stream": dice.random() < 0.5, "logprobs": dice.random() < 0.5}
        ask(self._server, "/v1/chat/completions", {**asked, "truncate": "middle"}, http)

    def _known_text(self, dice, http) -> str | None:
        """One of a few requests, which have always the same answer."""
        number = dice.randrange(20)
        asked = {
            "prompt": _text(random.Random(number)),
            "max_tokens": 10 + number,
            "seed": number,
            "logprobs": 1,
            "stream": dice.random() < 0.5,
        }
        choices, _ = ask(self._server, "/v1/completions", asked, http)
        with self._lock:
            known = self._known.setdefault(number, choices)
        return None if choices == known else f"answer {number} has changed"

    def _leaver(self, dice, http) -> None:
        asked = {**ENDLESS, "model": "soak", "prompt": _text(dice), "stream": True}
        with http.stream("POST", "/v1/completions", json=asked) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count > 2 * dice.randint(0, 20):
                    break

    def _vectors(self, dice, http) -> str | None:
        response = http.post("/v1/embeddings", json={"model": "soak", "input": [_text(dice) for _ in range(dice.randint(1, 4))]})
        return None if response.status_code == 200 else f"vectors: {response.status_code} {response.text[:200]}"

    def _echo(self, dice, http) -> None:
        ask(self._server, "/v1/completions", {"prompt": _text(dice), "max_tokens": 0, "echo": True, "logprobs": 2}, http)

    def _refused(self, dice, http) -> str | None:
        """What has to be refused, each with its own status."""
        content, path, kind, status = dice.choice(
            (
                ("{", "/v1/completions", "application/json", 400),
                ('{"model": "soak"}', "/v1/chat/completions", "application/json", 400),
                ('{"model": "other", "prompt": "x"}', "/v1/completions", "application/json", 404),
                ("x", "/v1/completions", "text/plain", 415),
                ("x" * 1_000_001, "/v1/embeddings", "application/json", 413),
                ("x", "/nowhere", "application/json", 404),
            )
        )
        found = http.post(path, content=content, headers={"content-type": kind}).status_code
        return None if found == status else f"{found} instead of {status}"


def _text(dice: random.Random) -> str:
    return " ".join(dice.choices(_WORDS, k=dice.randint(1, 60)))
