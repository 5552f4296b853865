"""Lets requests begin a few at a time, so that hundreds that arrive at once leave the event loop free in between."""

from __future__ import annotations

import asyncio
from collections import deque

_AT_ONCE = 4


class Turnstile:
    """Lets a few through in each turn of the event loop, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting = deque[asyncio.Future[None]]()
        self._passed = 0

    async def pass_through(self) -> None:
        """Waits for this request's turn."""
        loop = asyncio.get_running_loop()
        if self._passed < _AT_ONCE:
            self._count(loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _count(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed += 1
        if self._passed == 1:
            loop.call_soon(self._begin_turn, loop)

    def _begin_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._passed = 0
        while self._waiting and self._passed < _AT_ONCE:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client has gone
                turn.set_result(None)
                self._count(loop)
