"""Figures 1 to 3: what is no legal request, whoever sends it."""

import itertools
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.figures import Figure
from benchmarks.soak.served import NAME, Server, bar
from mtnlg.serve import app
from mtnlg.serve.limits import Limits
from mtnlg.serve.service import Service
from tests.serve import asking, raw

_AT_ONCE = 8
_MOST_GROWTH_BYTES = 10_000_000
_CHUNK_BYTES = 1 << 16


def malformed(server: Server, num_requests: int) -> Figure:
    """Figure 1. A third of the requests is legal, a third has fields that hold anything, and a third damaged bytes."""
    statuses: Counter = Counter()
    faults, slowest_secs = [], 0.0
    with bar(num_requests, "requests") as shown, ThreadPoolExecutor(_AT_ONCE) as pool:
        for status, fault, secs in pool.map(lambda one: _answered(server, *one), requests(num_requests)):
            statuses[status] += 1
            faults += [fault] if fault else []
            slowest_secs = max(slowest_secs, secs)
            shown.update()
    told = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items(), key=str))
    measured = f"{statuses.total()} requests: {told}; slowest {slowest_secs:.1f} s; {len(faults)} faults {faults[:1] or ''}".strip()
    return Figure("0 5xx, 0 hangs, every error in OpenAI's shape", measured, not faults and statuses.total() >= num_requests)


def requests(number: int) -> list[tuple[str, bytes]]:
    """(path, body) of at least so many, in an order that does not go by kind; the same ones every time."""
    kinds = []
    for path, legal in asking.legal(NAME).items():
        for bodies in (legal.map(asking.dumped), asking.mutated(legal), asking.damaged(legal)):
            kinds.append([(path, body) for body in _examples(bodies, -(-number // 9))])
    return [one for together in zip(*kinds, strict=True) for one in together]


def _examples(strategy: st.SearchStrategy, number: int) -> list:
    found = []

    @settings(max_examples=number, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found


def _answered(server: Server, path: str, body: bytes) -> tuple[int | str, str | None, float]:
    """(status, fault, seconds)."""
    begin = time.monotonic()
    try:
        response = server.http.post(path, content=body, headers={"content-type": "application/json"})
        return response.status_code, asking.fault_of(response), time.monotonic() - begin
    except httpx.TransportError as error:
        return type(error).__name__, f"{type(error).__name__} {body[:300]!r}", time.monotonic() - begin


def without_a_key(server: Server) -> Figure:
    """Figure 2: every route of the application, and paths that are none, with every method and four ways to have no key."""
    routes = {route.path.replace("{name:path}", NAME) for route in app.make(Service(Limits())).routes}
    wrong = (None, "Bearer wrong", f"Basic {server.http.headers['authorization'][7:]}", "Bearer")
    asked = list(itertools.product(wrong, asking.METHODS, sorted({*routes, *asking.UNKNOWN})))
    opened, refused, faults = 0, 0, []
    with bar(len(asked), "routes and methods") as shown, httpx.Client(base_url=server.url, timeout=30) as http:
        for authorization, method, path in asked:
            status = http.request(method, path, headers={"authorization": authorization} if authorization else {}).status_code
            is_open = path in app.OPEN_PATHS and method in ("GET", "HEAD")
            opened, refused = opened + (is_open and status == 200), refused + (not is_open and status == 401)
            if status != (200 if is_open else 401):
                faults.append((authorization, method, path, status))
            shown.update()
    measured = (
        f"{refused} of {len(asked) - opened} refused with 401; {opened} times one of {len(app.OPEN_PATHS)} open paths {faults[:1] or ''}"
    )
    return Figure("401 for everything but the page, /health and /ready", measured.strip(), not faults)


def endless_body(server: Server, num_bytes: int) -> Figure:
    """Figure 3: of a chunked body, as much as the server takes."""
    chunk = b"%x\r\n" % _CHUNK_BYTES + b" " * _CHUNK_BYTES + b"\r\n"
    before, most, sent_bytes, status = server.rss_bytes(), 0, 0, 0
    with raw.connection(server.port) as sock, bar(num_bytes, "bytes") as shown:
        headers = (f"authorization: {server.http.headers['authorization']}", "content-type: application/json", "transfer-encoding: chunked")
        sock.sendall(raw.head("POST", "/v1/completions", *headers))
        try:
            while sent_bytes < num_bytes:
                sock.sendall(chunk)
                sent_bytes += len(chunk)
                most = max(most, server.rss_bytes())
                shown.update(len(chunk))
        except OSError:
            pass  # as it should be
        status, _ = raw.refusal_of(sock.recv(4096))
    growth = max(most, server.rss_bytes()) - before
    measured = f"{status} after {sent_bytes / 1e6:.1f} MB of {num_bytes / 1e6:.0f}, RSS grew by {growth / 1e6:.2f} MB"
    return Figure("413, RSS grows by less than 10 MB", measured, status == 413 and growth < _MOST_GROWTH_BYTES and sent_bytes < num_bytes)
