"""Server-sent events, and noticing that a client has gone."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine

from mtnlg.serve.refusal import Refusal

DONE = b"data: [DONE]\n\n"
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class Gone(Exception):
    """The client has closed its connection."""


def encode(told: dict) -> bytes:
    return json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def too_late() -> Refusal:
    return Refusal(504, "the answer took too long", "deadline_exceeded")


async def unless_gone(work: Coroutine, receive):
    """What `work` returns. The body has been read. Raises Gone, and cancels the work, when the client closes its connection."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """An ASGI answer of events: parts, each some events, and [DONE]; or an error event as the last one."""

    def __init__(self, parts: AsyncIterator[list[dict]], until_secs: float, close: Callable[[], None]):
        """until_secs: by the event loop's clock; close: called however it ends."""
        self._parts, self._until_secs, self._close = parts, until_secs, close

    async def __call__(self, scope, receive, send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            async with asyncio.timeout_at(self._until_secs):
                await unless_gone(self._all(send), receive)
            end = DONE
        except TimeoutError:
            end = _event(too_late().told())
        except Refusal as refused:
            end = _event(refused.told())
        except Gone:
            return
        finally:
            self._close()
        await send({"type": "http.response.body", "body": end})

    async def _all(self, send) -> None:
        async for part in self._parts:
            await send({"type": "http.response.body", "body": b"".join(map(_event, part)), "more_body": True})


def _event(told: dict) -> bytes:
    return b"data: " + encode(told) + b"\n\n"
