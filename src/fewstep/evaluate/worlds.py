"""What an evaluation asks of a bundled world, which it draws afresh and whose pictures it can read."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from fewstep import assets
from fewstep.data.sources.squares import SquarePictures
from fewstep.evaluate.roster import PROMPT_SEED, Roster
from fewstep.models.extractors import Extractor


class WorldReader(Protocol):
    """Reads back what pictures of a world show."""

    @property
    def extractor(self) -> Extractor:
        """Returns the reader's features, which distances compare."""
        ...

    def read(self, pictures: Tensor) -> Sequence[Any]:
        """Returns the scene that each of uint8 `[b, h, w, 3]` shows; None where it is unreadable."""
        ...

    def agrees(self, shown: Any, stated: Any) -> bool:
        """Tells whether a scene shows all that a prompt states."""
        ...

    def measure_real(self, roster: Roster) -> Mapping[str, float]:
        """Returns columns of real pictures of the repeated prompts, as many as are painted; none where a world has no
        column that wants them."""
        ...


class BenchWorld(ABC):
    """Names a world as `--data` takes it."""

    def __init__(self, data: str) -> None:
        self.data = data

    @abstractmethod
    def draw_prompts(
        self, n: int, n_unseen: int = 0, repeated: int = 0, *, seed: int = 0, prompt_seed: int = PROMPT_SEED
    ) -> Roster:  # fmt: skip
        """Draws prompts of pictures that no training set holds by default."""

    @abstractmethod
    def draw_real(self) -> SquarePictures:
        """Draws such pictures."""

    def draw_others(self) -> SquarePictures | None:
        """Draws pictures of the look that this world's is told from; None where there is none."""
        return None

    def has_reader(self) -> bool:
        """Tells whether a reader of it is bundled."""
        return True

    @abstractmethod
    def load_reader(self, folder: str) -> WorldReader:
        """Loads the bundled reader, or that of a folder. Raises UserError where there is none."""

    def obeys(self) -> bool:
        """Tells whether the reader may say what pictures show; else its features alone are used."""
        return True


_WORLDS = {
    assets.SCENES: "scenes_bench.ScenesWorld",
    assets.SCENES_LEANING: "scenes_bench.ScenesWorld",
    assets.GALLERY: "gallery_bench.GalleryWorld",
    assets.GALLERY_TWEMOJI: "gallery_bench.GalleryWorld",
}
WORLDS = tuple(_WORLDS)


def find_world(data: str) -> BenchWorld | None:
    """Returns the world of that name; None for pictures of one's own."""
    if data not in _WORLDS:
        return None
    file, _, name = _WORLDS[data].partition(".")
    world: BenchWorld = getattr(importlib.import_module(f"fewstep.evaluate.{file}"), name)(data)
    return world
