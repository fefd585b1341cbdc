"""What the routes share: the model, threads for what blocks, and whether the server is starting, at work or ending."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mtnlg.core.errors import MtnlgError, TemporaryFailure
from mtnlg.serve import refusal
from mtnlg.serve.limits import Limits
from mtnlg.serve.metrics import Metrics
from mtnlg.serve.refusal import Refusal
from mtnlg.serve.writer import Busy, Failed, Writer

_READERS = 2  # threads that read requests: JSON, tokens, templates
_CALLERS = 4  # threads that wait for scores and vectors


class Service:
    """Belongs to the event loop's thread; only `writer` is set from another."""

    def __init__(self, limits: Limits):
        self.limits, self.metrics = limits, Metrics(self.load)
        self.writer: Writer | None = None
        self.draining = False
        self._queues: set[asyncio.Queue] = set()
        self._calls: set[asyncio.Future] = set()
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._callers = ThreadPoolExecutor(_CALLERS, "call")

    def load(self):
        """The writer's Load, or None before there is one."""
        return self.writer and self.writer.load()

    def at_work(self) -> Writer:
        """Raises Refusal while the model is loading, and when the server ends."""
        if self.draining:
            raise refusal.ending()
        if self.writer is None:
            raise Refusal(503, "the model is still loading", "loading", retry_secs=5)
        return self.writer

    async def read(self, function: Callable, body: bytes):
        """function(body, writer, limits), in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, function, body, self.at_work(), self.limits)

    async def call(self, function: Callable, *arguments):
        """function(*arguments, is_wanted), which blocks until the model has answered. Raises Refusal, also when too many wait already."""
        if len(self._calls) >= self.limits.queue:
            raise refusal.busy()
        left = threading.Event()
        future = asyncio.get_running_loop().run_in_executor(self._callers, function, *arguments, lambda: not left.is_set())
        self._calls.add(future)
        future.add_done_callback(self._called)
        try:
            return await asyncio.shield(future)
        except Busy:
            raise refusal.busy() from None
        except MtnlgError as error:
            raise refusal.of(error) from error
        except asyncio.CancelledError:
            left.set()
            if future.cancelled():
                raise refusal.ending() from None
            raise

    def _called(self, future: asyncio.Future) -> None:
        self._calls.discard(future)
        if not future.cancelled():
            future.exception()  # of a call that nobody waits for any more

    def begin(self, queue: asyncio.Queue) -> None:
        """What this queue tells of is under way."""
        self._queues.add(queue)

    def end(self, queue: asyncio.Queue) -> None:
        self._queues.discard(queue)

    def end_all(self) -> None:
        """Tells everything under way that the server's time is up."""
        for queue in self._queues:
            queue.put_nowait(Failed(TemporaryFailure("the server is ending")))
        for call in [*self._calls]:
            call.cancel()

    def close(self, timeout_secs: float) -> bool:
        """Lets the model and the threads go. False: one of them is still at work, as with a chat template that never ends."""
        if self.writer is not None:
            self.writer.close(timeout_secs)
        pools = (self._readers, self._callers)
        ending = threading.Thread(target=lambda: [pool.shutdown(cancel_futures=True) for pool in pools], daemon=True)
        ending.start()
        ending.join(timeout_secs)
        return not ending.is_alive()
