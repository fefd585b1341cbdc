"""Figure 4: clients that send half a request and then a byte now and then."""

import contextlib
import socket
import threading
import time

import numpy as np

from benchmarks.figures import Figure
from benchmarks.soak.answers import ask
from benchmarks.soak.served import Server, bar
from tests.serve import raw

_MOST_OPEN_SECS = 15
_DRIP_SECS = 1.0
_ASKED = {"prompt": "the cat", "max_tokens": 4, "seed": 1}


def slow_clients(server: Server, num_clients: int, num_rounds: int, secs: float) -> Figure:
    """secs: of each half of a round. The halves of a round are timed one after the other, first the idle server, then the same server from
    the opening of the slow connections on: what else the machine does falls on both. The p99 of all idle halves is compared with that of
    all the others; one client asks, one request after the other.
    """
    idle, beset, open_secs = [], [], []
    with bar(num_rounds, "rounds") as shown:
        for _ in range(num_rounds):
            idle += _latencies(server, secs)
            slow = _SlowClients(server, num_clients)
            try:
                beset += _latencies(server, secs)
                slow.thread.join()
            finally:
                slow.close()
            open_secs += slow.open_secs
            shown.update()
    return judge_slow(idle, beset, open_secs, num_clients * num_rounds)


def judge_slow(idle: list[float], beset: list[float], open_secs: list[float], num_clients: int) -> Figure:
    """idle, beset: seconds of each request; open_secs: of each slow client that the server has closed."""
    left = num_clients - len(open_secs)
    p99, p99_idle = (float(np.percentile(found, 99)) for found in (beset, idle))
    measured = f"{left} of {num_clients} left open, the last closed after {max(open_secs, default=0):.1f} s; "
    measured += f"p99 {p99 * 1e3:.1f} ms of {len(beset)} requests, idle {p99_idle * 1e3:.1f} ms of {len(idle)}: {p99 / p99_idle:.2f} times"
    passed = not left and max(open_secs) <= _MOST_OPEN_SECS and p99 < 2 * p99_idle
    return Figure("all slow clients closed in 15 s at most; p99 of others less than 2 times idle", measured, passed)


def _latencies(server: Server, secs: float) -> list[float]:
    found, end = [], time.monotonic() + secs
    while time.monotonic() < end:
        begin = time.monotonic()
        ask(server, "/v1/completions", _ASKED)
        found.append(time.monotonic() - begin)
    return found


class _SlowClients:
    """Half of them in the header, half in the body. open_secs: of those that the server has closed."""

    def __init__(self, server: Server, number: int):
        self.open_secs: list[float] = []
        self._server, self._number, self._sockets = server, number, []
        self.thread = threading.Thread(target=self._drip)
        self.thread.start()

    def _drip(self) -> None:
        headers = f"authorization: {self._server.http.headers['authorization']}", "content-type: application/json", "content-length: 900000"
        half = raw.head("POST", "/v1/completions", *headers)
        born = {}
        for place in range(self._number):
            sock = socket.create_connection(("127.0.0.1", self._server.port))
            self._sockets.append(sock)
            born[sock] = time.monotonic()
            sock.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" if place % 2 else half)
            sock.setblocking(False)
        end = time.monotonic() + 2 * _MOST_OPEN_SECS
        while born and time.monotonic() < end:
            time.sleep(_DRIP_SECS)
            for sock in [*born]:
                if _is_closed(sock):
                    self.open_secs.append(time.monotonic() - born.pop(sock))

    def close(self) -> None:
        self.thread.join()
        for sock in self._sockets:
            sock.close()


def _is_closed(sock: socket.socket) -> bool:
    """Sends another byte. What the server had to say is read and dropped."""
    try:
        sock.send(b"x")
        with contextlib.suppress(BlockingIOError):
            while content := sock.recv(1 << 16):
                pass
            return not content
    except OSError:
        return True
    return False
