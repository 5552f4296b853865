"""One budget of bytes for all that clients have in flight: bodies, pictures that are decoded, answers."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable, Iterator

from fewstep.serve.errors import RefusedError

BODIES = 0.4
"""Part of the budget that bodies may fill, so that what has arrived can be decoded too."""
SMALL = 64 << 10
"""Bytes of a body that are counted but never refused: short requests are taken while large ones fill the budget."""
_POLL = 0.05
_MUCH = 32 << 20
"""Bytes in flight after which the allocator is asked to return what it keeps, once all of them are gone."""
_LULL = 0.5
_ARENA_MAX = -8
"""glibc's name for the option, in malloc.h."""


class Budget:
    """Counts bytes, for all threads."""

    def __init__(self, most: int) -> None:
        self.most, self.used, self._high = most, 0, 0
        self._changed = threading.Condition()

    def add(self, count: int) -> None:
        """Counts bytes that are there already."""
        with self._changed:
            self._take(count)

    def add_body(self, count: int, held: int) -> None:
        """Counts bytes of a body of which `held` have been counted. Raises RefusedError where there is no room."""
        with self._changed:
            if held + count > SMALL and self.used + count > BODIES * self.most:
                raise refuse_for_now(f"bodies and pictures of clients fill the {self.most >> 20} MiB that they may")
            self._take(count)

    def give_back(self, count: int) -> None:
        with self._changed:
            self.used -= count
            self._changed.notify_all()
            if self.used == 0 and self._high > _MUCH:
                self._high = 0
                timer = threading.Timer(_LULL, return_memory)  # by then the last of it is let go
                timer.daemon = True
                timer.start()

    @contextlib.contextmanager
    def reserve(self, count: int, check: Callable[[], None]) -> Iterator[None]:
        """Waits in a thread until there is room; `check` may raise in the meantime. Raises RefusedError."""
        if count > self.most * (1 - BODIES):
            raise RefusedError(
                f"to decode it takes {count >> 20} MiB, and the server may use {int(self.most * (1 - BODIES)) >> 20}; "
                "send a smaller picture", status=413, code="picture_too_large",
            )  # fmt: skip
        with self._changed:
            while self.used + count > self.most:
                check()
                self._changed.wait(_POLL)
            self._take(count)
        try:
            yield
        finally:
            self.give_back(count)

    def _take(self, count: int) -> None:
        self.used += count
        self._high = max(self._high, self.used)


class Hold:
    """What one request or message holds of the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.count = budget, 0

    def add(self, count: int) -> None:
        """Counts bytes that are there already."""
        self._budget.add(count)
        self.count += count

    def add_body(self, count: int) -> None:
        """Counts bytes that arrive. Raises RefusedError where there is no room for them."""
        self._budget.add_body(count, self.count)
        self.count += count

    def release(self) -> None:
        self._budget.give_back(self.count)
        self.count = 0


def use_one_heap() -> None:
    """Has all threads take memory from one heap of the C library: of any further one glibc returns only a part."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def return_memory() -> None:
    """Has the C library return freed memory to the system, where it can; of its own accord glibc keeps much of it."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def refuse_for_now(reason: str) -> RefusedError:
    """Returns the refusal of what would be taken a little later."""
    return RefusedError(f"{reason}; try again", status=503, code="too_busy", headers={"Retry-After": "1"})
