"""What a run says of its pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import tyro

from fewstep import assets
from fewstep.data.reading import Crop
from fewstep.data.sources.filters import Filters
from fewstep.errors import UserError
from fewstep.train.config import LoopConfig

_BETWEEN = "::"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which pictures, and which square of each."""

    data: str = assets.SCENES
    """`scenes` or `scenes-leaning` (drawn on the fly); a folder of pictures with .txt captions or a metadata.jsonl; tar
    shards or parquet files, as a path, URL or pattern (docs/data.md); for a training also a folder that
    `fewstep prepare` filled."""
    filters: tyro.conf.OmitArgPrefixes[Filters] = field(default_factory=Filters)
    """Which of one's own pictures are used, by their metadata."""
    caption_fields: tuple[str, ...] = ()
    """Fields or columns that hold the captions of shards, if not the usual ones."""
    cache_gib: float = 100.0
    """Room on this machine's disk for shards that lie elsewhere."""
    pictures: int = 8192
    """How many scenes are drawn; other sources are used whole."""
    resolution: int = 0
    """Side of the pictures in pixels; 0 takes the model's own."""
    crop: Crop = "middle"
    """Which square is cut out of a picture that is none; `random` cuts another one wherever it stands."""

    def __post_init__(self) -> None:
        for name, least in (("pictures", 1), ("resolution", 0), ("cache_gib", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class PictureConfig(Pictures, LoopConfig):
    """What a training says of its pictures."""

    mix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further source and, after `::`, its weight beside that of --data, which is 1 (shards/::0.5); may be given
    several times. Each source is gone through in its own epochs."""
    flip: bool = False
    """Mirror every other picture, by chance. Not for captions that tell left from right."""
    keep_gib: float = 4.0
    """Latents and texts are encoded once and kept when they need at most this many GiB."""
    read_ahead: int = 0
    """Threads that read and decode the next batch while one is trained on; 0: none."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        Pictures.__post_init__(self)
        if self.read_ahead < 0:
            raise UserError(f"read_ahead is {self.read_ahead}; it must be at least 0")
        for given in self.mix:
            weigh(given)


def weigh(given: str) -> tuple[str, float]:
    """Splits `DATA::WEIGHT`. Raises UserError where the weight is not above 0."""
    data, between, weight = given.rpartition(_BETWEEN)
    if not between:
        return given, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"mix is {given}; after {_BETWEEN} stands a weight above 0, as in {data or 'shards/'}::0.5")
    return data, value
