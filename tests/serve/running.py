"""A server for tests, in a thread of this process, with a fake writer."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from mtnlg.serve import app, run
from mtnlg.serve.gate import Gate
from mtnlg.serve.limits import Limits
from mtnlg.serve.service import Service
from tests.serve.fake_writer import FakeWriter

KEY = "a key of the tests, 0123"


@dataclass
class Running:
    url: str
    port: int
    writer: FakeWriter | None
    service: Service
    http: httpx.Client
    stop: Callable[[], None]


@contextlib.contextmanager
def running(writer: FakeWriter | None = None, keys=(), limits: Limits = Limits()) -> Iterator[Running]:  # noqa: B008, frozen
    """writer None: the model is loading for ever."""
    service = Service(limits)
    service.writer = writer
    gate = Gate(app.make(service), service, tuple(key.encode() for key in keys), app.OPEN_PATHS, frozenset(["127.0.0.1", "localhost"]))
    started = threading.Event()
    server = run.Server(run.config_of(gate, limits), service, started.set, print)
    listener = run.bind("127.0.0.1", 0)
    stop = functools.partial(setattr, server, "should_exit", True)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert started.wait(10)
    port = listener.getsockname()[1]
    headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=20, limits=httpx.Limits(max_connections=None)
        ) as http:
            yield Running(f"http://127.0.0.1:{port}", port, writer, service, http, stop)
    finally:
        stop()
        thread.join()
        service.close(1.0)


def until(condition, secs: float = 3.0) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + secs
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(condition())
