"""What Prometheus is told at /metrics. Nothing in it comes from a request's text."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mtnlg.serve.writer import Load

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, load: Callable[[], Load | None]):
        self._registry = CollectorRegistry()
        self._registry.register(_OfLoad(load))
        make = {"registry": self._registry}
        self._requests = Counter("mtnlg_requests", "Requests answered", ("route", "status"), **make)
        self._first = Histogram("mtnlg_first_token_seconds", "From a request's submission to its first token", buckets=_SECS, **make)
        self._next = Histogram("mtnlg_token_seconds", "From one token of a request to the next", buckets=_SECS, **make)

    def answered(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def written(self, secs: float, num_tokens: int, first: bool) -> None:
        """num_tokens of a request that came at once, secs after those before."""
        if first:
            self._first.observe(secs)
        else:
            for _ in range(num_tokens):
                self._next.observe(secs / num_tokens)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _OfLoad(Collector):
    """The writer's own counts, asked for when Prometheus asks."""

    _GAUGES = (("queued", "Texts that wait for a row"), ("running", "Texts being written"), ("rows", "Texts that can be written at once"))
    _COUNTERS = (
        ("prompt_tokens", "Tokens of prompts"),
        ("reused_tokens", "Tokens of prompts that had been read before"),
        ("written_tokens", "Tokens written"),
        ("drafted_tokens", "Tokens that the draft drafted"),
        ("taken_tokens", "Tokens of the draft that were taken"),
    )

    def __init__(self, load: Callable[[], Load | None]):
        self._load = load

    def describe(self):
        return []

    def collect(self):
        load = self._load()
        if load is None:
            return
        for name, meaning in self._GAUGES:
            yield GaugeMetricFamily(f"mtnlg_{name}", meaning, value=getattr(load, name))
        for name, meaning in self._COUNTERS:
            yield CounterMetricFamily(f"mtnlg_{name}", meaning, value=getattr(load, name))
