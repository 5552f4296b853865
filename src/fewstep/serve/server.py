"""Runs uvicorn between bounds: on connections, on the time that a request's head may take, and on its own end."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewstep.errors import UserError
from fewstep.serve.connections import Connection, Switchboard
from fewstep.serve.faults import quiet_log
from fewstep.serve.listening import RESERVE, count_room
from fewstep.serve.service import PaintService
from fewstep.serve.settings import ServerSettings
from fewstep.serve.socket_protocol import BoundedSocket

_LEAST_ROOM = 8


class TimedProtocol(H11Protocol):
    """Closes a connection if a request's head takes too long, the first or a later one."""

    header_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._is_idle() and self._timer is None:
            self._start_timer()
        super().data_received(data)
        if not self._is_idle():
            self._stop_timer()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._stop_timer()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class PaintServer(uvicorn.Server):
    """Finishes what pages have been promised before it goes."""

    def __init__(self, config: uvicorn.Config, service: PaintService, drain_seconds: float) -> None:
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            if isinstance(connection, H11Protocol):
                connection.shutdown()
        await self._service.pages.finish(0 if self.force_exit else self._drain_seconds)
        await super().shutdown(sockets)


def make_server(app: Any, host: str, port: int, service: PaintService, drain_seconds: float) -> PaintServer:
    """Makes the server, which does not listen yet. Raises UserError where there are too few descriptors."""
    settings = service.settings
    switchboard = Switchboard(settings, _choose_most(settings))
    timed = type("Timed", (TimedProtocol,), {"header_seconds": settings.header_seconds})
    bounded = type("Bounded", (BoundedSocket,), {"settings": settings, "budget": service.budget})

    def connect(*args: Any, **kwargs: Any) -> Connection:
        return Connection(switchboard, timed(*args, **kwargs))

    quiet_log()
    config = uvicorn.Config(
        app, host=host, port=port, loop="asyncio", http=connect, ws=bounded,  # type: ignore[arg-type]  # called alone
        log_level="error", access_log=False, timeout_graceful_shutdown=round(drain_seconds),
        ws_max_size=settings.body_bytes, ws_per_message_deflate=False, server_header=False, proxy_headers=False,
    )  # fmt: skip
    return PaintServer(config, service, drain_seconds)


def _choose_most(settings: ServerSettings) -> int:
    """Returns the most connections that there may be, and that there are descriptors for."""
    room = count_room()
    if room is None or room >= settings.connections:
        return settings.connections
    if room < _LEAST_ROOM:
        raise UserError(
            f"the process may open too few files to keep {RESERVE} for itself; raise its limit (ulimit -n 1024)"
        )
    return room
