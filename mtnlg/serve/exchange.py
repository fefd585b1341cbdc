"""A job under way: what the writer's thread tells, as an asynchronous iteration that can be left at any time."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from mtnlg.core.errors import MtnlgError
from mtnlg.serve import refusal
from mtnlg.serve.service import Service
from mtnlg.serve.writer import Busy, Delta, Failed, Job


class Exchange:
    """Submitted when it is made; `close` cancels what has not been written."""

    def __init__(self, service: Service, job: Job):
        """Raises Refusal."""
        self._service, self._going = service, len(job.requests)
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue()
        self._last_secs, self._has_begun = time.monotonic(), False
        try:
            self._ticket = service.at_work().submit(job, self._notify)
        except Busy:
            raise refusal.busy() from None
        except MtnlgError as error:
            raise refusal.of(error) from error
        service.begin(self._queue)

    def _notify(self, event: Delta | Failed) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """All that has come since the last turn, until every choice has finished. Raises Refusal."""
        while self._going:
            events = [await self._queue.get()]
            while not self._queue.empty():
                events.append(self._queue.get_nowait())
            for event in events:
                if isinstance(event, Failed):
                    raise refusal.of(event.error) from event.error
                self._going -= event.finish is not None
            self._measure(sum(len(event.pieces) for event in events))
            yield events

    def _measure(self, num_tokens: int) -> None:
        if num_tokens:
            now = time.monotonic()
            self._service.metrics.written(now - self._last_secs, num_tokens, first=not self._has_begun)
            self._last_secs, self._has_begun = now, True

    def close(self) -> None:
        self._ticket.cancel()
        self._service.end(self._queue)
