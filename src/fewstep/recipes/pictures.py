"""Where a recipe's pictures come from: scenes drawn on the fly, or pictures of one's own."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fewstep import assets
from fewstep.data.decoding import Limits
from fewstep.data.picking import Picking
from fewstep.data.scene_drawing import SIDE, Look
from fewstep.data.scenes import SceneExamples, Scenes
from fewstep.data.sources import open_source
from fewstep.data.squares import SquarePictures
from fewstep.errors import UserError
from fewstep.models.encoding import CaptionedPicture, PictureSource

LOOKS: dict[str, Look] = {assets.SCENES: "plain", assets.SCENES_LEANING: "leaning"}
_NOT_A_NAME = frozenset(":{*?[")  # of a folder: a URL or a pattern


class PictureSettings(Protocol):
    """What a configuration says of its pictures."""

    @property
    def data(self) -> str: ...

    @property
    def pictures(self) -> int: ...

    @property
    def seed(self) -> int: ...


def open_pictures(config: PictureSettings, resolution: int) -> PictureSource:
    """The training set; of pictures of one's own it prints what was used and what was dropped."""
    if config.data not in LOOKS:
        return open_own(config.data, resolution)
    if resolution != SIDE:
        raise UserError(
            f"scenes are {SIDE} pixels wide and resolution is {resolution}; give your own pictures with --data"
        )
    return SceneExamples(Scenes(seed=config.seed, look=LOOKS[config.data]), config.pictures)


def open_own(data: str, resolution: int) -> SquarePictures:
    """Captioned pictures of one's own (docs/data.md); prints what was used and what was dropped."""
    if not (Path(data).exists() or _NOT_A_NAME.intersection(data)):
        close = difflib.get_close_matches(data, LOOKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known worlds are {' and '.join(LOOKS)}"
        raise UserError(f"data folder {data} does not exist{hint}")
    pictures = SquarePictures(open_source(data, Picking(limits=Limits(side=resolution))), resolution)
    print("\n".join([pictures.report.line(), *pictures.report.examples()]), flush=True)
    return pictures


@dataclass(frozen=True)
class FirstPictures:
    """The beginning of a source."""

    source: PictureSource
    count: int

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> CaptionedPicture:
        return self.source[index]
