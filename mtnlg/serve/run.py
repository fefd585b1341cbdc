"""The server's life: binding, loading while it already says that it is not ready, answering, and ending in time."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn

from mtnlg.core.errors import ConfigError, TemporaryFailure
from mtnlg.serve import app, connections
from mtnlg.serve.gate import Gate
from mtnlg.serve.limits import Limits
from mtnlg.serve.service import Service
from mtnlg.serve.writer import Writer

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_LAST_SHARE = 0.1  # of grace_secs: streams are ended so long before it is over
_CLOSE_SECS = 2.0


def serve(make_writer: Callable[[], Writer], host: str, port: int, keys: tuple[bytes, ...], limits: Limits, say: Callable[[str], None]):
    """Serves until SIGTERM or SIGINT. The model is loaded by `make_writer` in a thread meanwhile, and what it raises is raised here.

    say: told the address when the model can be asked. Where a thread cannot be ended (a chat template that never comes to its end), the
    process ends here, with exit code 0. Raises ConfigError (a host that others reach, without a key; an address that is not this
    machine's), TemporaryFailure (the port is taken).
    """
    if not keys and not _is_loopback(host):
        what = f"{host} is reached from other machines, and no key is asked for"
        raise ConfigError(what, "--host", "MTNLG_API_KEY=SECRET in the environment, --key_file=FILE, or --host=127.0.0.1")
    listener = bind(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    service = Service(limits)
    hosts = frozenset([*_LOOPBACK_NAMES, host.lower()])
    failures = []

    def load() -> None:
        try:
            service.writer = make_writer()
            say(address)
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    loader = threading.Thread(target=load, name="load")
    server = Server(config_of(Gate(app.make(service), service, keys, app.OPEN_PATHS, hosts), limits), service, loader.start)
    try:
        server.run([listener])
    finally:
        listener.close()
        if loader.is_alive():
            loader.join()
        has_ended = service.close(_CLOSE_SECS)
    if failures:
        raise failures[0]
    if not has_ended:
        sys.stdout.flush()
        os._exit(0)  # Python's own way out would wait for that thread


class Server(uvicorn.Server):
    """uvicorn's, which ends as it should: without killing itself, and with a word to streams that have not ended in time."""

    def __init__(self, config: uvicorn.Config, service: Service, has_started: Callable[[], None]):
        """has_started: called when it listens and signals are heard."""
        super().__init__(config)
        self._service, self._has_started = service, has_started

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._has_started()

    async def shutdown(self, sockets=None) -> None:
        self._service.draining = True
        secs = self._service.limits.grace_secs * (1 - _LAST_SHARE)
        ending = asyncio.get_running_loop().call_later(secs, self._service.end_all)
        await super().shutdown(sockets)
        ending.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's would raise the signal again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def config_of(gate: Gate, limits: Limits) -> uvicorn.Config:
    """uvicorn's, with nothing left to its defaults that a client could wear out."""
    return uvicorn.Config(
        gate,
        http=connections.protocol(limits),
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_secs,
        timeout_graceful_shutdown=limits.grace_secs,
        h11_max_incomplete_event_size=limits.header_bytes,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet. Raises ConfigError, TemporaryFailure."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host} is no address: {error.strerror}", "--host", "--host=127.0.0.1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise TemporaryFailure(f"cannot listen at {host}:{port}: {error.strerror}", "--port", "another --port, or --port=0") from error
    return listener
