"""Captions as they are written: bytes or fields of metadata, made into one bounded line."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence

from fewstep.data.sources.base import DroppedError, Reason

MAX_CHARACTERS = 2_000
"""Longer captions are cut here; text encoders read less than a fifth of it."""
MAX_TEXT_BYTES = 1 << 18
"""No more of a caption's file is read."""
MAX_JSON_BYTES = 1 << 22
"""Longer JSON is not parsed."""
NAMES = ("caption", "text")
"""Fields that hold captions unless others are given; upper and lower case are one."""


def clean(text: object) -> str:
    """White space, line breaks included, becomes single spaces; what is too long is cut.

    Raises DroppedError for what is no text, is empty, or holds half a surrogate pair. Bytes are read as UTF-8.
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
    """The caption in the first bytes of a UTF-8 file, at most `MAX_TEXT_BYTES` of them."""
    whole = len(content) < MAX_TEXT_BYTES
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(content[:MAX_TEXT_BYTES], final=whole)
    except UnicodeDecodeError as error:
        raise DroppedError(Reason.CAPTION_NOT_UTF8) from error
    return clean(text)


def parse_json(content: bytes) -> dict[str, object]:
    """The fields of a JSON object by their names in lower case."""
    try:
        if len(content) > MAX_JSON_BYTES:
            raise ValueError("too long")
        return lower_names(json.loads(content.decode("utf-8-sig")))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DroppedError(Reason.BAD_METADATA) from error


def lower_names(fields: Mapping[str, object]) -> dict[str, object]:
    """Of names that differ in case alone the first counts."""
    found: dict[str, object] = {}
    for name, value in fields.items():
        found.setdefault(name.lower(), value)
    return found


def find_field(fields: Mapping[str, object], names: Sequence[str]) -> object:
    """The first of `names` that has a value, else None; `fields` are in lower case."""
    return next((value for name in names or NAMES if (value := fields.get(name.lower())) is not None), None)


def find_columns(available: Iterable[str], names: Sequence[str]) -> list[str]:
    """Those of the available columns that `names` mean, in the order of `names`."""
    by_name: dict[str, str] = {}
    for column in available:
        by_name.setdefault(column.lower(), column)
    return [by_name[name.lower()] for name in names if name.lower() in by_name]
