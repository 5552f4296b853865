"""What a person may choose of pictures: how they are cut, what becomes of captions, which scores in their metadata
pass; and the reasons why something that was found is not used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UserError


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


Crop = Literal["middle", "random"]
"""Which square of a picture that is not square is taken."""
Buckets = Literal["off", "on"]
"""Whether pictures become squares, or keep about the aspect that they have."""
CaptionLines = Literal["join", "draw", "first"]
"""What becomes of a caption of several lines: one line, one of them drawn at each position, or the first alone."""


SCORES: dict[str, tuple[str, ...]] = {
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"),
    "watermark": ("pwatermark", "watermark", "watermark_score"),
    "unsafe": ("punsafe", "unsafe", "unsafe_score", "nsfw_score", "nsfw_score_opennsfw2"),
    "similarity": ("similarity", "clip_similarity", "clip_similarity_vitb32", "clip_similarity_vitl14"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
}
"""Every score, and its names in the metadata of LAION and img2dataset, in any case. The first name with a value
counts; for the sides that is the size of the stored picture."""
_NAMES = frozenset(name for names in SCORES.values() for name in names)
NO_SCORES = (math.nan,) * len(SCORES)

Missing = Literal["reject", "accept", "error"]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Limits on scores; None switches one off, and a picture exactly at a limit passes."""

    min_aesthetic: float | None = None
    """LAION's scores go from 1 to 10; 5 and 6 are usual limits."""
    max_watermark: float | None = None
    """Highest probability of a watermark."""
    max_unsafe: float | None = None
    """Highest probability of being unsafe."""
    min_similarity: float | None = None
    """Lowest CLIP similarity of picture and caption."""
    min_side: int | None = None
    """Least length of the shorter side, in pixels."""
    max_aspect: float | None = None
    """Largest ratio of longer to shorter side."""
    missing: Missing = "reject"
    """What to do with a picture whose metadata lacks a score that a limit needs; `error` ends the command."""

    def __post_init__(self) -> None:
        for name, least in (("min_side", 1), ("max_aspect", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        if self.missing not in ("reject", "accept", "error"):
            raise UserError(f"missing is {self.missing}; it must be reject, accept or error")

    def find_refused(self, scores: NDArray[np.float64], key: Callable[[int], str]) -> dict[str, NDArray[np.bool_]]:
        """Returns, for each reason, a mask of the rows of `scores` that it refuses; each row counts once.

        `scores` is `[n, len(SCORES)]`, NaN where missing. With `missing="error"` raises UserError, in which `key` names
        the row.
        """
        open_rows = np.ones(len(scores), dtype=bool)
        found: dict[str, NDArray[np.bool_]] = {}
        for what, values, limit, below in self._checks(scores):
            absent = np.isnan(values)
            if self.missing == "error" and (absent & open_rows).any():
                name = key(int(np.flatnonzero(absent & open_rows)[0]))
                raise UserError(f"{name} has no {what} in its metadata; add it, or give missing reject or accept")
            beyond = values < limit if below else values > limit  # a NaN is neither
            reasons = {f"{what} {'below' if below else 'above'} {limit:g}": beyond}
            if self.missing == "reject":
                reasons = {f"without {what}": absent, **reasons}
            for reason, mask in reasons.items():
                found[reason] = mask & open_rows
                open_rows &= ~mask
        return {reason: mask for reason, mask in found.items() if mask.any()}

    def refuse_size(self, size: tuple[int, int]) -> str | None:
        """Returns why a picture of this width and height is refused, or None."""
        if self.min_side is None and self.max_aspect is None:
            return None
        scores = np.array([[*NO_SCORES[:-2], *size]])
        sides = Filters(min_side=self.min_side, max_aspect=self.max_aspect)
        return next(iter(sides.find_refused(scores, str)), None)

    def _checks(self, scores: NDArray[np.float64]) -> list[tuple[str, NDArray[np.float64], float, bool]]:
        """Returns, for each limit that is set: its name, values, limit, and whether values below it are refused."""
        column = dict(zip(SCORES, scores.T, strict=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            short = np.minimum(column["width"], column["height"])
            aspect = np.maximum(column["width"], column["height"]) / short
        checks = [
            ("aesthetic score", column["aesthetic"], self.min_aesthetic, True),
            ("watermark score", column["watermark"], self.max_watermark, False),
            ("unsafe score", column["unsafe"], self.max_unsafe, False),
            ("similarity", column["similarity"], self.min_similarity, True),
            ("shorter side", short, self.min_side, True),
            ("aspect ratio", aspect, self.max_aspect, False),
        ]
        return [(what, values, limit, below) for what, values, limit, below in checks if limit is not None]


def read_scores(fields: Mapping[str, object]) -> tuple[float, ...]:
    """Reads the scores of one picture in the order of `SCORES`; names in `fields` are in lower case."""
    if _NAMES.isdisjoint(fields):
        return NO_SCORES
    return tuple(_read_first_number(fields, names) for names in SCORES.values())


def _read_first_number(fields: Mapping[str, object], names: Sequence[str]) -> float:
    return next((value for name in names if not math.isnan(value := parse_number(fields.get(name)))), math.nan)


def parse_number(value: object) -> float:
    """Converts a number or its text to float; NaN for anything else."""
    try:
        found = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan
