"""Cleans captions: bytes or fields of metadata become one line of bounded length."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence

from fewstep.data.sources.base import DroppedError, Reason

MAX_CHARACTERS = 2_000
"""Longer captions are truncated; text encoders read less than a fifth of this."""
MAX_TEXT_BYTES = 1 << 18
"""Most bytes read of a caption file."""
MAX_JSON_BYTES = 1 << 22
"""Most bytes of JSON that are parsed."""
NAMES = ("caption", "text")
"""Fields that hold captions unless others are given, in any case."""


def clean(text: object) -> str:
    """Turns white space and line breaks into single spaces and truncates; bytes are read as UTF-8.

    Raises DroppedError for anything but text, for an empty caption, and for half a surrogate pair.
    """
    if isinstance(text, bytes):
        return parse_text(text)
    if not isinstance(text, str):
        raise DroppedError(Reason.NO_CAPTION)
    caption = " ".join(text[: 16 * MAX_CHARACTERS].split())[:MAX_CHARACTERS].rstrip()
    if not caption:
        raise DroppedError(Reason.EMPTY_CAPTION)
    try:
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DroppedError(Reason.CAPTION_NOT_UTF8) from error
    return caption


def parse_text(content: bytes) -> str:
    """Reads a caption from the first `MAX_TEXT_BYTES` bytes of a UTF-8 file. Raises DroppedError as `clean` does."""
    whole = len(content) < MAX_TEXT_BYTES
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content[:MAX_TEXT_BYTES], final=whole)
    except UnicodeDecodeError as error:
        raise DroppedError(Reason.CAPTION_NOT_UTF8) from error
    return clean(text)


def parse_json(content: bytes) -> dict[str, object]:
    """Returns the fields of a JSON object by their names in lower case. Raises DroppedError for anything else."""
    try:
        if len(content) > MAX_JSON_BYTES:
            raise ValueError("too long")
        return lower_names(json.loads(content.decode("utf-8-sig")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DroppedError(Reason.BAD_METADATA) from error


def lower_names(fields: Mapping[str, object]) -> dict[str, object]:
    """Lowers the case of all names; of names that then collide the first wins."""
    found: dict[str, object] = {}
    for name, value in fields.items():
        found.setdefault(name.lower(), value)
    return found


def find_field(fields: Mapping[str, object], names: Sequence[str]) -> object:
    """Returns the value of the first of `names` that has one; `fields` are in lower case."""
    return next((value for name in names or NAMES if (value := fields.get(name.lower())) is not None), None)


def find_columns(available: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns the available columns that match `names` in any case, in the order of `names`."""
    by_name: dict[str, str] = {}
    for column in available:
        by_name.setdefault(column.lower(), column)
    return [by_name[name.lower()] for name in names if name.lower() in by_name]
