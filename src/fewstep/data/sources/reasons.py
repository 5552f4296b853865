"""Why something that was found in a source of pictures is not used."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why something that was found is not used; whatever is found counts under one reason at most.

    Filters add their own reasons, in words: `aesthetic score below 6`.
    """

    BROKEN = "broken picture"
    TOO_LARGE = "too large"
    UNREADABLE = "unreadable file"
    UNSUPPORTED = "unsupported format"
    NO_CAPTION = "without caption"
    EMPTY_CAPTION = "empty caption"
    CAPTION_NOT_UTF8 = "caption not UTF-8"
    BAD_LINE = "bad metadata line"
    REPEATED_LINE = "repeated metadata line"
    BAD_METADATA = "unreadable metadata"
    MISSING = "missing picture"
    NOT_DOWNLOADED = "not downloaded"
    OUTSIDE = "outside the folder"
    LINKED_OUTSIDE = "linked outside the folder"
    NOT_SEARCHED = "unsearched folder"
    REPEATED_NAME = "repeated name"
    NOT_A_FILE = "link or device"
    DAMAGED_SHARD = "damaged shard"
    MISSING_SHARD = "missing shard"
    CHANGED_SHARD = "changed shard"
