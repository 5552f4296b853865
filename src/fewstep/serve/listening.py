"""The socket that the server listens at: it keeps descriptors in reserve, and lets few clients in at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Any

from fewstep.errors import UserError

RESERVE = 64
"""Descriptors that connections leave to the rest of the process."""
_AT_ONCE = 64
"""Clients that are let in before the event loop sees to those that are there."""
_UNREAD_MILLISECONDS = 30_000
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener(socket.socket):
    """A listening socket for asyncio's event loop."""

    def __init__(self, family: int) -> None:
        # Only where the protocol is named does asyncio send small answers at once, rather than 40 ms later.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._accepted = 0
        self._spare = _open_spare()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accepts a client. Raises BlockingIOError where none waits, after a number of them, or without descriptors."""
        self._accepted += 1
        if self._accepted > _AT_ONCE:
            self._accepted = 0
            raise BlockingIOError(errno.EAGAIN, "others have their turn first")
        try:
            return super().accept()
        except BlockingIOError:
            self._accepted = 0
            raise
        except OSError as error:
            self._accepted = 0
            if error.errno not in _SHORT:
                raise
            self._turn_away()  # who is not accepted would wake the event loop again and again
            raise BlockingIOError(errno.EAGAIN, "there are no descriptors") from error

    def _turn_away(self) -> None:
        """Accepts a client with the descriptor in reserve, and closes the connection."""
        if self._spare is None:
            self._spare = _open_spare()
            return
        os.close(self._spare)
        with contextlib.suppress(OSError):
            super().accept()[0].close()
        self._spare = _open_spare()

    def close(self) -> None:
        super().close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return None


def listen(host: str, port: int) -> Listener:
    """Returns a socket that listens. Raises UserError where it cannot."""
    listening = Listener(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Whoever does not read for so long is cut off, with what was kept for him.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MILLISECONDS)
        listening.bind((host, port))
        listening.listen(2048)  # from now on clients are only kept waiting
    except OSError as error:
        listening.close()
        raise UserError(
            f"{host}:{port} cannot be used for listening ({error.strerror}); choose another --port, or 0"
        ) from error
    return listening


def count_room() -> int | None:
    """Returns how many connections there are descriptors for; None where the system does not say."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/dev/fd"))
    except (ImportError, OSError):
        return None
    return None if most == resource.RLIM_INFINITY else most - used - RESERVE
