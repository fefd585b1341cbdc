"""What every request passes: its key, its size, how many at once, its number. Errors that come this far are told without detail."""

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections import Counter
from collections.abc import Iterator

from mtnlg.serve import refusal
from mtnlg.serve.refusal import Refusal
from mtnlg.serve.service import Service

LOG = logging.getLogger("mtnlg.serve")
_OPEN_METHODS = ("GET", "HEAD")
_ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/metrics")
_MODELS = "/v1/models/"


class Gate:
    """ASGI, around the application."""

    def __init__(self, app, service: Service, keys: tuple[bytes, ...], open_paths: frozenset[str], hosts: frozenset[str]):
        """keys: one of them is asked for, but for open_paths; none: everything is open, to requests that name one of `hosts`.

        (A foreign page whose name leads to this machine sends its own name.)
        """
        self._app, self._service, self._keys, self._open, self._hosts = app, service, keys, open_paths, hosts
        self._at_once = Counter()

    async def __call__(self, scope, receive, send) -> None:
        number = f"req_{secrets.token_hex(12)}"
        answer = _Answer(send, number)
        try:
            await self._pass(scope, receive, answer)
        except Refusal as refused:
            await refusal.send(refused, answer)
        except asyncio.CancelledError:  # the server's time is up
            if not answer.status:
                await refusal.send(refusal.ending(), answer)
        except Exception:
            LOG.exception("%s failed", number)
            if not answer.status:
                await refusal.send(refusal.internal(), answer)
        finally:
            self._service.metrics.answered(self._route(scope["path"]), answer.status)

    async def _pass(self, scope, receive, send) -> None:
        headers, limits = scope["headers"], self._service.limits
        if (
            len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in headers)
            > limits.header_bytes
        ):
            raise Refusal(431, f"the header has more than {limits.header_bytes} bytes", "header_too_large")
        who = self._who(scope, headers)
        length = _only(headers, b"content-length") or b"0"
        if len(length) > 18 or int(length) > limits.body_bytes:
            raise _too_long(limits.body_bytes)
        with self._among(who):
            await self._app(scope, _counted(receive, limits.body_bytes), send)

    @contextlib.contextmanager
    def _among(self, who: int | str | None) -> Iterator[None]:
        """One of the requests of this client. Raises Refusal when it has as many as it may."""
        if who is None:
            yield
            return
        most = self._service.limits.per_key
        if self._at_once[who] >= most:
            raise Refusal(429, f"{most} requests at once are the most", "rate_limit_exceeded", retry_secs=1)
        self._at_once[who] += 1
        try:
            yield
        finally:
            self._at_once[who] -= 1
            if not self._at_once[who]:
                del self._at_once[who]

    def _who(self, scope, headers) -> int | str | None:
        """Whose request it is: a key's number, or an address; None for what is open to all. Raises Refusal."""
        is_open = scope["path"] in self._open and scope["method"] in _OPEN_METHODS
        if not self._keys:
            host = _only(headers, b"host")
            if host is None or _name(host) not in self._hosts:
                raise Refusal(403, "without a key this server answers to this machine's own names only", "forbidden_host")
            return None if is_open else scope["client"][0]
        if is_open:
            return None
        scheme, _, given = (_only(headers, b"authorization") or b"").partition(b" ")
        same = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        if scheme.lower() != b"bearer" or not given.strip():
            raise Refusal(401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")
        if not any(same):
            raise Refusal(401, "this key is not known", "invalid_api_key")
        return same.index(True)

    def _route(self, path: str) -> str:
        """A name of which there are few, whatever is asked for."""
        if path in self._open or path in _ROUTES:
            return path
        return f"{_MODELS}NAME" if path.startswith(_MODELS) else "other"


class _Answer:
    """`send`, with the request's number among the headers. status: 0 until the answer begins."""

    def __init__(self, send, number: str):
        self._send, self.status = send, 0
        self._headers = [(b"x-request-id", number.encode()), (b"x-content-type-options", b"nosniff")]

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)


def _counted(receive, most_bytes: int):
    """`receive`, which raises Refusal as soon as a body is too long."""
    num_bytes = 0

    async def counted():
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > most_bytes:
            raise _too_long(most_bytes)
        return message

    return counted


def _too_long(most_bytes: int) -> Refusal:
    return Refusal(413, f"the body has more than {most_bytes} bytes", "body_too_large")


def _only(headers, wanted: bytes) -> bytes | None:
    """The value of a header that stands there once; None: it does not."""
    values = [value for name, value in headers if name == wanted]
    return values[0] if len(values) == 1 else None


def _name(host: bytes) -> str:
    """example.org of example.org:8000, and [::1] of [::1]:8000."""
    name, colon, port = host.decode("latin-1").lower().rpartition(":")
    return name if colon and port.isdecimal() else host.decode("latin-1").lower()
