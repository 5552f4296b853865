"""Reads what clients send outside the event loop: in a pool of fixed size, with a deadline, until they leave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fewstep.serve.budget import Budget, refuse_for_now
from fewstep.serve.errors import RefusedError

_THREADS = 2
Result = TypeVar("Result")


class UnwantedError(Exception):
    """Nobody wants it any more."""


class ReadingTask:
    """What one piece of work in the pool is given: memory to use, and whether it is to go on."""

    def __init__(self, budget: Budget, seconds: float) -> None:
        self.budget, self._seconds = budget, seconds
        self._end, self._stopped = time.monotonic() + seconds, threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def check(self) -> None:
        """Raises UnwantedError when nobody wants it any more, RefusedError when it takes too long."""
        if self._stopped.is_set():
            raise UnwantedError
        if time.monotonic() > self._end:
            raise refuse_late(self._seconds)


class ReadingPool:
    """Works in a fixed number of threads; what waits for one of them waits in the event loop, where it can leave."""

    def __init__(self, budget: Budget, seconds: float) -> None:
        self.budget, self._seconds = budget, seconds
        self._threads = ThreadPoolExecutor(_THREADS, "reading")
        self._slots = asyncio.Semaphore(_THREADS)

    async def run(self, work: Callable[[ReadingTask], Result]) -> Result:
        """Returns what `work` returns; tells it to stop when the caller is cancelled. Raises RefusedError."""
        reader, loop = ReadingTask(self.budget, self._seconds), asyncio.get_running_loop()
        future: Future[Result] | None = None
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
                future = self._threads.submit(work, reader)
                future.add_done_callback(lambda _: _call(loop, self._slots.release))
                return await asyncio.wrap_future(_shield(future))
        except TimeoutError as error:
            raise refuse_late(self._seconds) from error
        finally:
            reader.stop()
            del future  # else an error and its traceback would keep each other, and what was sent


def refuse_late(seconds: float) -> RefusedError:
    """Returns the refusal of what took longer than that to read."""
    return refuse_for_now(f"what was sent took more than {seconds:g} s to read: send less")


def _shield(future: Future[Result]) -> Future[Result]:
    """Returns a future whose cancellation leaves the first one, and its place in the pool, alone."""
    outer = Future[Result]()

    def copy(done: Future[Result]) -> None:
        if not outer.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            outer.set_result(done.result())
        else:
            outer.set_exception(error)

    future.add_done_callback(copy)
    return outer


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)
