"""Runs uvicorn with a time limit: a connection whose request does not arrive is closed."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewstep.serve.settings import ServerSettings


def make_server(app: Any, host: str, port: int, settings: ServerSettings, drain_seconds: float) -> uvicorn.Server:
    """Makes the server, which does not listen yet."""

    class TimedProtocol(H11Protocol):
        """Closes a connection if a request's head takes too long, the first or a later one."""

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
            self._timer = self.loop.call_later(settings.header_seconds, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    config = uvicorn.Config(
        app, host=host, port=port, http=TimedProtocol, log_level="error", access_log=False,
        limit_concurrency=settings.connections, timeout_graceful_shutdown=round(drain_seconds),
        ws_max_size=settings.body_bytes, server_header=False, proxy_headers=False,
    )  # fmt: skip
    return uvicorn.Server(config)
