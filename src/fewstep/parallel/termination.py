"""SIGTERM, which ends a process at once, with a word of what it keeps."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def told_at_termination(last_words: str) -> Iterator[None]:
    """Writes `last_words` on stderr where SIGTERM ends this process while it lasts, in its main thread.

    Nothing is unwound: an exception out of a handler is lost where it strikes in a destructor, and what is written is
    whole at any time. Processes that were started here find their parent gone.
    """

    def end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # a handler's signature
        with contextlib.suppress(Exception):  # it may have been in the midst of writing
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"\n{last_words}\n".encode())
        os._exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
