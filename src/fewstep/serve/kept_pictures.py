"""Pictures that clients fetch by a link: kept in memory, for an hour and within a bound."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 3600.0
"""How long a picture is kept, as OpenAI has it."""
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class KeptPicture:
    """A picture's file."""

    content: bytes
    media_type: str
    end: float
    """When it is let go, in the clock's seconds."""


class KeptPictures:
    """Keeps pictures under names that nobody can guess; when there is no more room the oldest go first."""

    def __init__(
        self, seconds: float = SECONDS, most_bytes: int = MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._seconds, self._most, self._clock = seconds, most_bytes, clock
        self._pictures: OrderedDict[str, KeptPicture] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, content: bytes, media_type: str) -> str:
        """Keeps a picture and returns its name."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._pictures[name] = KeptPicture(content, media_type, self._clock() + self._seconds)
            self._bytes += len(content)
            self._clear()
        return name

    def find(self, name: str) -> KeptPicture | None:
        """Returns a picture, or None where it was let go or never was."""
        with self._lock:
            self._clear()
            return self._pictures.get(name)

    def _clear(self) -> None:
        while self._pictures:
            oldest = next(iter(self._pictures.values()))
            if oldest.end > self._clock() and self._bytes <= self._most:
                return
            self._pictures.popitem(last=False)
            self._bytes -= len(oldest.content)
