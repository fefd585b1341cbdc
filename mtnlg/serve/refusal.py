"""Errors as OpenAI's API tells them: {"error": {"message", "type", "param", "code"}}."""

import json

from mtnlg.core.errors import ConfigError, DataError, MtnlgError, TemporaryFailure

MAX_MESSAGE_CHARS = 500
_TYPES = {429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered, and what its client is told."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None, retry_secs: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message[:MAX_MESSAGE_CHARS], code, param
        self.headers = [] if retry_secs is None else [(b"retry-after", str(retry_secs).encode())]

    def told(self) -> dict:
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.told()).encode()


def bad(message: str, param: str | None = None, code: str | None = None) -> Refusal:
    """A request that has to be changed."""
    return Refusal(400, message, code, param)


def busy() -> Refusal:
    return Refusal(429, "the server has as much to write as it takes on; try again", "rate_limit_exceeded", retry_secs=1)


def of(error: MtnlgError) -> Refusal:
    """What a client hears of an error of ours: what is wrong, but not where, which may be a path."""
    if isinstance(error, (ConfigError, DataError)):
        return bad(error.what)
    if isinstance(error, TemporaryFailure):
        return Refusal(503, error.what, "unavailable", retry_secs=1)
    return internal()


def internal() -> Refusal:
    return Refusal(500, "the server failed; its log says how", "internal_error")


async def send(refusal: Refusal, send, headers: tuple = ()) -> None:
    """Answers an ASGI request with the refusal."""
    body = refusal.body()
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *refusal.headers, *headers]
    if refusal.status == 401:
        own.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": own})
    await send({"type": "http.response.body", "body": body})
