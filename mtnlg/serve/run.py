"""The server's life: binding, loading while it already says that it is not ready, answering, and ending in time."""

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
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
_LAST_WORDS_SECS = 1.0  # that connections have after a second signal
_LOOK_SECS = 0.1
_ONE_WISH_SECS = 1.0  # `timeout`, schedulers and terminals may send one wish twice, to the process and to its group


class Stopped(Exception):
    """The server has been ended while its model was loading."""


def serve(
    make_writer: Callable[[Callable[[], None]], Writer],
    host: str,
    port: int,
    keys: tuple[bytes, ...],
    limits: Limits,
    say: Callable[[str], None],
    note: Callable[[str], None],
):
    """Serves until SIGTERM or SIGINT. The model is loaded by `make_writer` in a thread meanwhile, and what it raises is raised here.

    make_writer: given a check to call between its parts, which raises Stopped. say: told the address when the model can be asked. note:
    told how it ends. Where a thread cannot be ended (a compilation, a chat template that never comes to its end), the process ends here,
    with exit code 0; so it does at a second signal, with 128 and the signal's number. Raises ConfigError (a host that others reach,
    without a key; an address that is not this machine's), TemporaryFailure (the port is taken).
    """
    if not keys and not _is_loopback(host):
        what = f"{host} is reached from other machines, and no key is asked for"
        raise ConfigError(what, "--host", "MTNLG_API_KEY=SECRET in the environment, --key_file=FILE, or --host=127.0.0.1")
    listener = bind(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    service = Service(limits)
    hosts = frozenset([*_LOOPBACK_NAMES, host.lower()])
    failures = []

    def check() -> None:
        if server.should_exit:
            raise Stopped

    def load() -> None:
        try:
            service.writer = make_writer(check)
            check()
            say(address)
        except Stopped:
            pass
        except BaseException as error:
            failures.append(error)
            server.should_exit = True

    loader = threading.Thread(target=load, name="load")
    server = Server(config_of(Gate(app.make(service), service, keys, app.OPEN_PATHS, hosts), limits), service, loader.start, note)
    with server.ears():
        try:
            server.run([listener])
        finally:
            listener.close()
            if loader.is_alive() and not server.hurry_signal:
                loader.join(_CLOSE_SECS)
            has_ended = not (server.hurry_signal or loader.is_alive()) and service.close(_CLOSE_SECS)
    if failures:
        raise failures[0]
    if not has_ended:
        _leave(server.hurry_signal)


def _leave(number: int) -> None:
    """Ends the process, for a signal or 0: Python's own way out would wait for threads that cannot be ended."""
    sys.stdout.flush()
    os._exit(128 + number if number else 0)


class Server(uvicorn.Server):
    """uvicorn's, which ends as it should: without killing itself, and with a word to streams that have not ended in time.

    hurry_signal: the number of the second signal, at which it ends at once; 0: there was none.
    """

    def __init__(self, config: uvicorn.Config, service: Service, has_started: Callable[[], None], note: Callable[[str], None]):
        """has_started: called when it listens and signals are heard; note: told how it ends."""
        super().__init__(config)
        self._service, self._has_started, self._note = service, has_started, note
        self._first_secs, self._is_over, self.hurry_signal = None, False, 0

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self._has_started()

    def handle_exit(self, sig, frame) -> None:
        if self._first_secs is None:
            self._first_secs, self.should_exit = time.monotonic(), True
        elif time.monotonic() - self._first_secs > _ONE_WISH_SECS:
            self.hurry_signal = sig
            if self._is_over:
                _leave(sig)

    async def shutdown(self, sockets=None) -> None:
        self._service.draining = True
        if self._first_secs is not None:
            self._tell(self._ending())
        secs = self._service.limits.grace_secs * (1 - _LAST_SHARE)
        ending = asyncio.get_running_loop().call_later(secs, self._service.end_all)
        hurrying = asyncio.create_task(self._hurry())
        await super().shutdown(sockets)
        ending.cancel()
        hurrying.cancel()
        self._is_over = True

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # Ctrl-C has ended `tee` too
            self._note(line)

    def _ending(self) -> str:
        load = self._service.load()
        if load is None:
            return "stopped"
        texts = load.queued + load.running
        if not texts:
            return "ending"
        secs = self._service.limits.grace_secs
        return f"ending: {texts} {'texts are' if texts > 1 else 'text is'} being written, at most {secs} s; Ctrl-C again ends at once"

    async def _hurry(self) -> None:
        """Waits for a second signal, and ends everything."""
        while not self.hurry_signal:
            await asyncio.sleep(_LOOK_SECS)
        self._tell("stopped")
        self._service.end_all()
        if going := {*self.server_state.tasks}:
            _, blocked = await asyncio.wait(going, timeout=_LAST_WORDS_SECS)
            for task in blocked:
                task.cancel()
            await asyncio.wait(going, timeout=_LAST_WORDS_SECS)
        for connection in [*self.server_state.connections]:
            connection.transport.abort()

    @contextlib.contextmanager
    def ears(self) -> Iterator[None]:
        """Signals are heard here, also while threads are awaited at the end. On the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def capture_signals(self) -> contextlib.AbstractContextManager:
        """uvicorn's would raise the signal again at the end."""
        return contextlib.nullcontext()


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
