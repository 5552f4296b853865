"""Cleans captions: bytes or fields of metadata become one line of bounded length."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence

from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.filters import CaptionLines, Reason
from fewstep.documents import name_encoding

MAX_CHARACTERS = 2_000
"""Longer captions are truncated; text encoders read less than a fifth of this."""
MAX_TEXT_BYTES = 1 << 18
"""Most bytes read of a caption file."""
MAX_JSON_BYTES = 1 << 22
"""Most bytes of JSON that are parsed."""
NAMES = ("caption", "text")
"""Fields that hold captions unless others are given, in any case."""
OTHER_NAMES = (
    "captions", "texts", "prompt", "prompts", "en_text", "en_caption", "caption_en", "text_en", "txt", "image_caption",
    "short_caption", "long_caption", "detailed_caption", "generated_caption", "blip_caption", "recaption", "alt_text",
    "alt", "sentences", "sentence", "raw", "tag_string", "description", "title", "tags",
)  # fmt: skip
"""Fields of which the first that is there holds the captions, where there is none of `NAMES`."""
SUFFIXES = (".txt", ".caption", ".json")
"""Endings of the files beside pictures that hold captions, the first of them that is there."""

JOINED = "captions of several lines, joined (--caption-lines draw takes one of them at a time)"
"""What is told of captions."""


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


def read_all(value: object, lines: CaptionLines) -> tuple[str, ...]:
    """Reads the captions of one picture from a text or a list of texts; of a list, what is empty is left out.

    `lines` says what becomes of a text of several lines. Raises DroppedError as `clean` does.
    """
    if isinstance(value, list):
        told = [find_field(lower_names(each), ()) if isinstance(each, dict) else each for each in value]
        texts = [text for text in told if isinstance(text, str | bytes) and text.strip()]
        found = tuple(caption for text in texts for caption in read_all(text, lines))
        return found or (clean("" if told else None),)
    text = decode_text(value) if isinstance(value, bytes) else value
    if lines == "join" or not isinstance(text, str):
        return (clean(text),)
    each = [line for line in text[: 16 * MAX_CHARACTERS].splitlines() if line.strip()] or [""]
    return tuple(map(clean, each if lines == "draw" else each[:1]))


def has_lines(value: object) -> bool:
    """Tells whether a text, or one of a list, has several lines."""
    if isinstance(value, list):
        return any(map(has_lines, value))
    text = str(value, "utf-8", "replace") if isinstance(value, bytes) else str(value)
    return "\n" in text and "\n" in text.strip()


def parse_text(content: bytes) -> str:
    """Reads a caption from the first `MAX_TEXT_BYTES` bytes of a UTF-8 file. Raises DroppedError as `clean` does."""
    return clean(decode_text(content))


def decode_text(content: bytes) -> str:
    """Decodes the first `MAX_TEXT_BYTES` bytes of a file in UTF-8, or in UTF-16 with its mark. Raises DroppedError
    where they are something else."""
    whole = len(content) < MAX_TEXT_BYTES
    try:
        text = codecs.getincrementaldecoder(name_encoding(content))().decode(content[:MAX_TEXT_BYTES], final=whole)
    except UnicodeDecodeError as error:
        raise DroppedError(Reason.CAPTION_NOT_UTF8) from error
    return text


def parse_json(content: bytes) -> dict[str, object]:
    """Returns the fields of a JSON object by their names in lower case. Raises DroppedError for anything else."""
    try:
        if len(content) > MAX_JSON_BYTES:
            raise ValueError("too long")
        return lower_names(json.loads(content.decode(name_encoding(content))))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DroppedError(Reason.BAD_METADATA) from error


def lower_names(fields: Mapping[str, object]) -> dict[str, object]:
    """Lowers the case of all names; of names that then collide the first wins."""
    found: dict[str, object] = {}
    for name, value in fields.items():
        found.setdefault(name.lower(), value)
    return found


def find_field(fields: Mapping[str, object], names: Sequence[str]) -> object:
    """Returns the value of the first of `names` that has one; `fields` are in lower case.

    Without names it is that of `NAMES`, else of the first of `OTHER_NAMES` that is there.
    """
    chosen = [name.lower() for name in names] or choose_columns(fields, ())
    return next((value for name in chosen if (value := fields.get(name)) is not None), None)


def choose_columns(available: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns the columns that hold captions, in the order in which they are asked for a value."""
    columns = list(available)
    return find_columns(columns, names or NAMES) or ([] if names else find_columns(columns, OTHER_NAMES)[:1])


def find_columns(available: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns the available columns that match `names` in any case, in the order of `names`."""
    by_name: dict[str, str] = {}
    for column in available:
        by_name.setdefault(column.lower(), column)
    return [by_name[name.lower()] for name in names if name.lower() in by_name]
