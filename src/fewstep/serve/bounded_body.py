"""The body of one request as it arrives: counted, timed, and held against the budget; and its answer in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import Message, Receive, Send

from fewstep.serve.budget import Hold
from fewstep.serve.errors import RefusedError

_COPIES = 2
"""Times that a body is in memory while it is answered: as it came, and as what was read from it."""
_SLICE = 64 << 10
"""Bytes of an answer that are handed on at a time, so that the rest waits here, once, for a client that is slow."""


class BoundedBody:
    """Stands between the server and a route, for one request."""

    def __init__(self, receive: Receive, send: Send, hold: Hold, *, most: int, seconds: float,
                 headers: Sequence[tuple[bytes, bytes]]) -> None:  # fmt: skip
        """Takes `most` bytes that may arrive, in `seconds`; and headers that an answer has unless a route sets them."""
        self._receive, self._send, self._hold = receive, send, hold
        self._most, self._seconds, self._headers = most, seconds, headers
        self._end = asyncio.get_running_loop().time() + seconds
        self._count, self._whole, self._answered = 0, False, False
        self._refusal: RefusedError | None = None

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._refusal is not None:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
            self._count_bytes(len(message.get("body", b"")))
        except TimeoutError:
            self._refusal = refuse_slow(self._seconds)
            return {"type": "http.disconnect"}
        except RefusedError as error:
            self._refusal = error
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        return message

    def _count_bytes(self, count: int) -> None:
        self._count += count
        if self._count > self._most:
            raise refuse_large(self._most)
        self._hold.add_body(_COPIES * count)

    async def send(self, message: Message) -> None:
        if self._refusal is not None and not self._whole:
            if not self._answered:  # whatever the application makes of a body that breaks off
                self._answered = True
                response = self._refusal.response()
                response.headers["connection"] = "close"
                await response({"type": "http"}, self._receive, self._send)
            return
        if message["type"] == "http.response.start":
            own = message.get("headers", [])
            names = {name for name, _ in own}
            message = {**message, "headers": [*own, *(each for each in self._headers if each[0] not in names)]}
        body = message.get("body", b"")
        if len(body) <= _SLICE:
            await self._send(message)
            return
        self._hold.add(len(body))
        for begin in range(0, len(body), _SLICE):
            more = begin + _SLICE < len(body) or message.get("more_body", False)
            await self._send({**message, "body": body[begin : begin + _SLICE], "more_body": more})


def refuse_large(most: int) -> RefusedError:
    """Returns the refusal of a body that is larger than so many bytes."""
    limit = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
    return RefusedError(f"the body is larger than {limit}; send less", status=413, code="body_too_large")


def refuse_slow(seconds: float) -> RefusedError:
    """Returns the refusal of a body that has not arrived in so many seconds."""
    message = f"the body took more than {seconds:g} s to arrive; send it faster, or less"
    return RefusedError(message, status=408, code="too_slow")
