"""A function over many batches, in several processes, with the results in the order of the batches."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from mtnlg.core.errors import TemporaryFailure

_AHEAD = 2  # batches on their way for each worker


def ordered(function: Callable, items: Iterable, num_workers: int) -> Iterator:
    """function(item) of every item, in order; at most _AHEAD * num_workers items are held at once.

    One worker works in this process; more are processes of their own (spawned), to which `function` goes once and items go one by
    one. What the function raises is raised here. Raises TemporaryFailure when a worker is killed.
    """
    if num_workers == 1:
        yield from map(function, items)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, spawn, initializer=_begin, initargs=(function,))
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            with unstoppable_children():
                waiting.append(pool.submit(_work, item))
            if len(waiting) >= _AHEAD * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        cure = "the same command with fewer --workers, or more memory"
        raise TemporaryFailure("a worker was killed", "--workers", cure) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def unstoppable_children() -> Iterator[None]:
    """Processes that are started inside never get Ctrl-C, which is their parent's business, not even before their first line."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(function: Callable) -> None:
    """In a new worker: its parent's end is its own too, even by SIGKILL."""
    global _function
    _function = function
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(item):
    return _function(item)
