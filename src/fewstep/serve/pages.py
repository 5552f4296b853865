"""The pages that are open: how many, which of them goes for another, and how they end with the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

from fastapi import WebSocket

RESTED = 4001
"""Code with which a page that rests is closed for another one; it connects again when it is used."""
_GOING_DOWN = 1012
_CLOSING_SECONDS = 1.0


@dataclass(eq=False)
class Page:
    """A page, and what is painted for it."""

    socket: WebSocket
    task: asyncio.Task[None] | None = None
    last: float = field(default_factory=time.monotonic)
    """When it was last heard or answered, in time.monotonic's seconds."""

    @property
    def busy(self) -> bool:
        return self.task is not None and not self.task.done()

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(Exception):  # it may have gone in the meantime
            await self.socket.close(code, reason)


class Pages:
    """Holds a bounded number of pages."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Page] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.going_down = False

    def admit(self, page: Page) -> bool:
        """Takes a page, in place of the one that has rested longest where there is no room; False if none rests."""
        if len(self._open) >= self._most:
            resting = [each for each in self._open if not each.busy]
            if not resting:
                return False
            oldest = min(resting, key=lambda each: each.last)
            self.leave(oldest)
            closing = asyncio.create_task(oldest.close(RESTED, "it rested longest, and another page was opened"))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._open.add(page)
        return True

    def leave(self, page: Page) -> None:
        self._open.discard(page)

    async def finish(self, seconds: float) -> None:
        """Takes nothing more; waits for what is painted, and closes all pages."""
        self.going_down = True
        tasks = [page.task for page in self._open if page.task is not None and page.busy]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        closing = [asyncio.create_task(page.close(_GOING_DOWN, "the server goes down")) for page in self._open]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSING_SECONDS)
