"""Faults in the log: each kind once a minute, however often it happens."""

from __future__ import annotations

import logging
import time

_SECONDS = 60.0
_KINDS = 100
LOGGERS = ("asyncio", "uvicorn.error", "fewstep.serve.engine")


class OnceAMinute(logging.Filter):
    """Lets a record through if none of its kind was in the last minute, and says how many were held back since."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, str(record.msg)[:80], record.exc_info[0] if record.exc_info else None)
        now = time.monotonic()
        begun, held_back = self._seen.get(kind, (-_SECONDS, 0))
        if now - begun < _SECONDS:
            self._seen[kind] = (begun, held_back + 1)
            return False
        if len(self._seen) >= _KINDS:
            self._seen.clear()
        self._seen[kind] = (now, 0)
        if held_back:
            record.msg = f"{record.msg} (and {held_back} more since the last time)"
        return True


def quiet_log() -> None:
    """Has the faults that strangers can bring about written at most once a minute."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(each, OnceAMinute) for each in logger.filters):
            logger.addFilter(OnceAMinute())
