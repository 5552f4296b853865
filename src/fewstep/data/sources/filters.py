"""Which pictures are wanted, by scores that stand in their metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UserError

SCORES: dict[str, tuple[str, ...]] = {
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2"),
    "watermark": ("pwatermark", "watermark", "watermark_score"),
    "unsafe": ("punsafe", "unsafe", "unsafe_score", "nsfw_score", "nsfw_score_opennsfw2"),
    "similarity": ("similarity", "clip_similarity", "clip_similarity_vitb32", "clip_similarity_vitl14"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
}
"""Every score, and the names it has in metadata (LAION's and img2dataset's; upper and lower case are one). The
first that has a value counts: of the sides, those of the picture as it lies there."""
NO_SCORES = (math.nan,) * len(SCORES)

Missing = Literal["reject", "accept", "error"]


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Limits on scores, each one off where it is None; a picture at the limit is wanted."""

    min_aesthetic: float | None = None
    """LAION's scores go from 1 to 10; 5 and 6 are usual limits."""
    max_watermark: float | None = None
    """Probability of a watermark."""
    max_unsafe: float | None = None
    """Probability of being unsafe."""
    min_similarity: float | None = None
    """CLIP similarity of picture and caption."""
    min_side: int | None = None
    """Of the shorter side, in pixels."""
    max_aspect: float | None = None
    """Longer side over shorter side."""
    missing: Missing = "reject"
    """What becomes of a picture whose metadata lacks a score that a limit asks for; `error` ends the command."""

    def __post_init__(self) -> None:
        for name, least in (("min_side", 1), ("max_aspect", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        if self.missing not in ("reject", "accept", "error"):
            raise UserError(f"missing is {self.missing}; it must be reject, accept or error")

    def find_refused(self, scores: NDArray[np.float64], key: Callable[[int], str]) -> dict[str, NDArray[np.bool_]]:
        """Under each reason the rows of `scores` (`[n, len(SCORES)]`, NaN where missing) that it refuses first.

        `key` names a row in the UserError of `missing="error"`.
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
        """The reason to refuse a picture whose true sides are known."""
        if self.min_side is None and self.max_aspect is None:
            return None
        scores = np.array([[*NO_SCORES[:-2], *size]])
        sides = Filters(min_side=self.min_side, max_aspect=self.max_aspect)
        return next(iter(sides.find_refused(scores, str)), None)

    def _checks(self, scores: NDArray[np.float64]) -> list[tuple[str, NDArray[np.float64], float, bool]]:
        """What is compared, its values, the limit, and whether what lies below it is refused; set limits alone."""
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
    """The scores in one picture's metadata, whose names are in lower case, in the order of `SCORES`."""
    return tuple(_first_number(fields, names) for names in SCORES.values())


def _first_number(fields: Mapping[str, object], names: Sequence[str]) -> float:
    return next((value for name in names if not math.isnan(value := parse_number(fields.get(name)))), math.nan)


def parse_number(value: object) -> float:
    """NaN where it is no number."""
    try:
        found = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan
    return found if math.isfinite(found) else math.nan
