"""uvicorn's WebSocket, with bounds on what a client keeps half sent: its time, its memory, and how finely it is cut."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from fewstep.serve.budget import Budget, Hold
from fewstep.serve.errors import RefusedError
from fewstep.serve.settings import ServerSettings

_FRAMES, _PER_SECOND = 1000.0, 200.0
"""Frames that may come at once, and those a second that may go on coming."""
_FRAGMENT = 1 << 10
"""Bytes of which a fragment, on average, brings as many as a frame that counts."""
_POLICY, _LARGE, _INVALID, _LATER = 1008, 1009, 1007, 1013


class BoundedSocket(WebSocketsSansIOProtocol):
    """A WebSocket of a stranger."""

    budget: Budget
    settings: ServerSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hold = Hold(self.budget)
        self._allowed, self._counted_at = _FRAMES, time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._bound_unfinished()

    def handle_cont(self, event: Any) -> None:
        self._count_frame()
        super().handle_cont(event)
        event.data = b""  # the library keeps a frame until the next one comes

    def handle_text(self, event: Any) -> None:
        self._count_frame()
        super().handle_text(event)
        event.data = b""

    def handle_bytes(self, event: Any) -> None:
        self._count_frame()
        super().handle_bytes(event)
        event.data = b""

    def handle_ping(self) -> None:
        self._count_frame()
        super().handle_ping()

    def handle_pong(self, event: Any) -> None:
        self._count_frame()
        super().handle_pong(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._hold.release()
        super().connection_lost(exc)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                for each in self.frames if len(self.frames) == 1 else [b"".join(self.frames)]:
                    bytes(each).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._end(_INVALID, "a text is not UTF-8")
                return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # by a refusal, which the library would log as a fault

    def _count_frame(self) -> None:
        """Ends the connection of a client that sends more frames than anyone needs."""
        now = time.monotonic()
        self._allowed = min(_FRAMES, self._allowed + _PER_SECOND * (now - self._counted_at)) - 1
        self._counted_at = now
        if self._allowed < 0:
            self._end(_POLICY, "too many frames a second")

    def _bound_unfinished(self) -> None:
        """Counts what is here of a message that is not whole, and sees that it is soon."""
        count = len(self.conn.reader.buffer) + sum(map(len, self.frames))
        try:
            if count > self._hold.count:
                self._hold.add_body(count - self._hold.count)
        except RefusedError as error:
            self._end(_LATER, str(error))
        if count == 0:
            self._stop_timer()
            self._hold.release()
        elif self._timer is None and not self.close_sent:
            self._timer = self.loop.call_later(self.settings.body_seconds, self._give_up)

    def _give_up(self) -> None:
        self._end(_POLICY, f"a message took more than {self.settings.body_seconds:g} s")

    def _end(self, code: int, reason: str) -> None:
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
