"""Exceptions that end a command with a message for the user, and how texts of strangers are shown."""

import difflib
import logging
import re
from collections.abc import Iterable

SCREEN = 2000
"""Letters that a terminal shows at once, and the longest message."""
_NOT_SHOWN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069"
    "\ud800-\udfff\ufeff\U000e0000-\U000e007f]"
)
"""What moves a terminal's cursor, turns its letters round, hides among them, or is no letter at all."""


class UserError(Exception):
    """Says in one line what was wrong, what is allowed and what to do; the command exits with status 2."""

    def __str__(self) -> str:
        return show(super().__str__())  # whoever prints it


def show(text: object, most: int = SCREEN) -> str:
    """Returns a text, names and headers of strangers in it, as it may be printed: what a terminal would obey is made
    visible, as `\\x1b`, and of more than `most` letters the middle is left out."""
    shown = str(text)
    if (more := len(shown) - most) > 0:
        shown = f"{shown[: most * 2 // 3]} … ({more:,} letters left out) … {shown[-most // 3 :]}"
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], shown)


def find_nearest(given: str, known: Iterable[str], alike: float = 0.5) -> str | None:
    """Returns the word of those known that is spelt nearly as `given` and begins most like it; None where none is.

    `alike` is the least similarity, by difflib's measure.
    """
    close = difflib.get_close_matches(given, list(known), 5, alike)

    def count_shared(word: str) -> int:
        """Counts the letters at the beginning that are the given word's too."""
        pairs = enumerate(zip(word, given, strict=False))
        return next((i for i, (one, other) in pairs if one != other), min(len(word), len(given)))

    return max(close, key=count_shared, default=None)


class ShownFormatter(logging.Formatter):
    """Formats a log's message as `show` does, but for a traceback, which is of the program's own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # the library's name
        return show(super().formatMessage(record))


class StoppedError(Exception):
    """Ends a run that was asked to stop and has saved its state."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after update {step}, which is saved: the same command goes on from there")
        self.number = number
        """Is the signal that stopped it."""


def is_short_of_memory(error: Exception) -> bool:
    """Tells whether torch or Python ran out of memory."""
    import torch  # slow, and not needed for --help

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
