"""uvicorn with patience that ends: a connection whose request does not come is closed."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewstep.serve.settings import Settings


def make_server(app: Any, host: str, port: int, settings: Settings, drain_seconds: float) -> uvicorn.Server:
    """Not yet listening."""

    class PatientProtocol(H11Protocol):
        """Closes a connection if a request's head takes too long, the first or a later one."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self._idle() and self._timer is None:
                self._expect()
            super().data_received(data)
            if not self._idle():
                self._have_it()

        def handle_websocket_upgrade(self, event: Any) -> None:
            self._have_it()
            super().handle_websocket_upgrade(event)

        def connection_lost(self, exc: Exception | None) -> None:
            self._have_it()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect(self) -> None:
            self._timer = self.loop.call_later(settings.header_seconds, self.transport.close)

        def _have_it(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    config = uvicorn.Config(
        app, host=host, port=port, http=PatientProtocol, log_level="error", access_log=False,
        limit_concurrency=settings.connections, timeout_graceful_shutdown=round(drain_seconds),
        ws_max_size=settings.body_bytes, server_header=False, proxy_headers=False,
    )  # fmt: skip
    return uvicorn.Server(config)
