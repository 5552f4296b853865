"""Connections to the server: how many there may be, whose turn it is, and when one is cut off.

A connection stands between its socket and uvicorn's protocol. What arrives is handed on in small pieces, by turns, so
that a flood of tiny frames or chunks on any number of connections leaves the event loop free again and again.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import OrderedDict
from typing import Any

from fewstep.serve.settings import ServerSettings

_LEAST_PIECE, _FIRST_PIECE, _MOST_PIECE = 256, 512, 8 << 10
"""Bytes that are handed on at a time: fewer where they take long, more where they do not."""
_PIECE_SECONDS = 0.001
_TURN_SECONDS = 0.002
"""Seconds for which pieces are handed on before the event loop sees to everything else."""
_RECEIVED = 64 << 10
"""Bytes that a socket is read for at a time."""
_STALLED_SECONDS = 1.0
"""Seconds without reading after which a client may be cut off for the sake of another one."""
_REASON = b"the server has as many connections as it takes; try again soon\n"
_UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\n%s" % (len(_REASON), _REASON)
)


class Switchboard:
    """All connections of a server, and those of which pieces wait to be handed on."""

    def __init__(self, settings: ServerSettings, most: int) -> None:
        self.settings, self._most = settings, most
        self._count = 0
        self._by_address: dict[str, OrderedDict[Connection, None]] = {}
        """Holds those of an address, in the order in which their clients last asked for something."""
        self._turns: dict[Connection, None] = {}

    def admit(self, connection: Connection) -> bool:
        """Takes a connection, in place of one that waits for its client where there is no room; else False.

        In all, room is made by the address that has the most.
        """
        own = self._by_address.setdefault(connection.address, OrderedDict())
        crowd = None
        if len(own) >= self.settings.address_connections:
            crowd = connection.address
        elif self._count >= self._most:
            crowd = max(self._by_address, key=lambda address: len(self._by_address[address]))
        if crowd is not None:
            leaving = self._choose_leaving(crowd)
            if leaving is None:
                return False
            leaving.shed()
        self._by_address.setdefault(connection.address, own)[connection] = None  # where its last one has just left
        self._count += 1
        return True

    def leave(self, connection: Connection) -> None:
        own = self._by_address.get(connection.address)
        if own is not None and connection in own:
            del own[connection]
            self._count -= 1
            if not own:
                del self._by_address[connection.address]

    def note_asking(self, connection: Connection) -> None:
        """Notes that a client asks for something, so that others go before him."""
        own = self._by_address.get(connection.address)
        if own is not None and connection in own:
            own.move_to_end(connection)

    def _choose_leaving(self, address: str) -> Connection | None:
        """Returns, of an address, the connection whose client has asked for nothing for longest; else one that dawdles.

        One that is being answered stays.
        """
        dawdling = None
        for each in self._by_address[address]:
            if each.patience == 0 and not each.has_unheard():
                return each
            if each.patience == 1 and dawdling is None:
                dawdling = each
        return dawdling

    def add_turn(self, connection: Connection) -> None:
        """Lets a connection hand on a piece, when its turn comes."""
        if not self._turns:
            asyncio.get_running_loop().call_soon(self._take_turns)
        self._turns[connection] = None

    def _take_turns(self) -> None:
        """Hands on pieces, always of the connection that has cost least, so that no flood is before a newcomer."""
        end = time.perf_counter() + _TURN_SECONDS
        while self._turns and time.perf_counter() < end:
            connection = min(self._turns, key=lambda each: each.spent)
            if not connection.hand_on():
                del self._turns[connection]
        if self._turns:
            asyncio.get_running_loop().call_soon(self._take_turns)


class PacedTransport:
    """What uvicorn's protocol takes for the transport: it pauses the pieces, not the socket."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def set_protocol(self, protocol: Any) -> None:
        self._connection.inner = protocol

    def get_protocol(self) -> Any:
        return self._connection.inner

    def pause_reading(self) -> None:
        self._connection.paused = True

    def resume_reading(self) -> None:
        self._connection.paused = False
        self._connection.plan()


class Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, switchboard: Switchboard, inner: Any) -> None:
        self._switchboard, self.inner = switchboard, inner
        self.address, self.paused = "", False
        self.spent = 0.0
        """Seconds that its pieces have taken."""
        self._waiting, self._piece = bytearray(), _FIRST_PIECE
        self._planned = self._held = self._admitted = False
        self._unread_since = 0.0
        self._unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.max_size = _RECEIVED  # type: ignore[attr-defined]  # of asyncio's own transports
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self._admitted = self._switchboard.admit(self)
        if self._admitted:
            self.inner.connection_made(PacedTransport(transport, self))
        else:
            self._refuse()

    @property
    def _is_http(self) -> bool:
        return hasattr(self.inner, "cycle")

    @property
    def patience(self) -> int:
        """Returns 0 if the client has not asked for anything, 1 if it keeps the server waiting, 2 if it is served."""
        if self._unread_timer is not None and time.monotonic() - self._unread_since > _STALLED_SECONDS:
            return 1
        if not self._is_http:  # pages make room for each other by themselves
            return 1 if self.inner.close_sent else 2
        cycle = self.inner.cycle
        if cycle is None or cycle.response_complete:
            return 0
        return 1 if cycle.more_body else 2

    def has_unheard(self) -> bool:
        """Returns whether something has arrived that is not handed on yet: a request may stand there already."""
        if self._waiting or not hasattr(select, "poll"):  # which Windows lacks
            return bool(self._waiting)
        arrived = select.poll()
        arrived.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(arrived.poll(0))

    def shed(self) -> None:
        """Cuts the connection off, with a word if nothing else was answered."""
        self._switchboard.leave(self)
        is_answered = not self._is_http or (self.inner.cycle is not None and self.inner.cycle.response_started)
        if not is_answered:
            self._refuse()
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self) -> None:
        self.transport.write(_UNAVAILABLE)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        if not self._admitted:
            return
        self._waiting += data
        if not self._held:
            self._held = True
            self.transport.pause_reading()
        self.plan()

    def plan(self) -> None:
        """Asks for a turn where there is something to hand on."""
        if self._waiting and not self.paused and not self._planned:
            self._planned = True
            self._switchboard.add_turn(self)

    def hand_on(self) -> bool:
        """Hands on a piece; returns whether there is another one that can be."""
        if self._waiting and not self.paused and not self.transport.is_closing():
            if self.patience == 0:
                self._switchboard.note_asking(self)
            begun = time.perf_counter()
            piece = bytes(self._waiting[: self._piece])
            del self._waiting[: self._piece]
            self.inner.data_received(piece)
            self._note_cost(time.perf_counter() - begun)
        if not self._waiting and self._held and not self.transport.is_closing():
            self._held = False
            self.transport.resume_reading()
        self._planned = bool(self._waiting) and not self.paused and not self.transport.is_closing()
        return self._planned

    def _note_cost(self, seconds: float) -> None:
        self.spent += seconds
        self._piece = (
            max(_LEAST_PIECE, self._piece // 2) if seconds > _PIECE_SECONDS else min(_MOST_PIECE, self._piece * 2)
        )

    def eof_received(self) -> None:
        if self._admitted:
            self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.clear()
        self._stop_timer()
        self._switchboard.leave(self)
        if self._admitted:
            self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._unread_since = time.monotonic()
        self._start_timer(self.transport.get_write_buffer_size())
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self._stop_timer()
        self.inner.resume_writing()

    def _start_timer(self, unread: int) -> None:
        seconds, loop = self._switchboard.settings.unread_seconds, asyncio.get_running_loop()
        self._unread_timer = loop.call_later(seconds, self._check_reading, unread)

    def _stop_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _check_reading(self, before: int) -> None:
        """Cuts off a client that has not read since."""
        unread = self.transport.get_write_buffer_size()
        if unread >= before:
            self.transport.abort()
        else:
            self._start_timer(unread)
