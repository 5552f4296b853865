"""What pictures of scenes are scored with: the bundled reader, its features, and scenes drawn afresh."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep import assets
from fewstep.data.pictures import from_levels, to_levels, to_pixels
from fewstep.data.sources.squares import SquarePictures
from fewstep.data.worlds.drawing import SIDE
from fewstep.data.worlds.scene import LOOKS, Look, Scene
from fewstep.data.worlds.scenes import SceneExamples, Scenes
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.reader import Reader, hash_reader, load_reader, read
from fewstep.evaluate.roster import PROMPT_SEED, Roster, make_scenes_roster
from fewstep.evaluate.worlds import BenchWorld, WorldReader
from fewstep.models.extractors import Extractor

REFERENCE_SCENES = 2048
_AT_ONCE = 64


class ScenesReader:
    """Asks the reader of scenes, as an evaluation does."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.extractor = make_reader_extractor(reader)

    def read(self, pictures: Tensor) -> Sequence[Scene | None]:
        return read(self._reader, from_levels(pictures))[0]

    def agrees(self, shown: Scene, stated: Scene) -> bool:
        return shown.agrees_with(stated)

    def measure_real(self, roster: Roster) -> Mapping[str, float]:  # noqa: ARG002  # a caption leaves little open
        return {}


class ScenesWorld(BenchWorld):
    """Scenes in a look."""

    def draw_prompts(
        self, n: int, n_unseen: int = 0, repeated: int = 0, *, seed: int = 0, prompt_seed: int = PROMPT_SEED
    ) -> Roster:  # fmt: skip
        return make_scenes_roster(n, n_unseen, repeated, seed=seed, prompt_seed=prompt_seed)

    def draw_real(self) -> SquarePictures:
        return draw_references(LOOKS[self.data])

    def draw_others(self) -> SquarePictures | None:
        return None if self.obeys() else draw_references()

    def load_reader(self, folder: str) -> WorldReader:
        return ScenesReader(load_reader(Path(folder) if folder else assets.SCENES_READER))

    def obeys(self) -> bool:  # the reader has learnt one look alone
        return self.data == assets.SCENES


def draw_references(look: Look = "plain") -> SquarePictures:
    """Draws real pictures that no training set holds by default."""
    return SquarePictures(SceneExamples(Scenes(PROMPT_SEED + 1, "seen", look), REFERENCE_SCENES), SIDE)


def make_scenes_bench(roster: Roster, reader: Reader | None = None) -> Bench:
    """Makes a bench for scores outside `fewstep evaluate`, with the bundled reader where none is given."""
    read_by = ScenesReader(reader or load_reader(assets.SCENES_READER))
    return Bench(roster, read_by.extractor, compute_real_features(read_by.extractor, draw_references())[0], read_by)


def make_reader_extractor(reader: Reader) -> Extractor:
    """Makes an extractor that takes uint8 pictures to the reader's features."""

    def features(pictures: Tensor) -> Tensor:
        return read(reader, from_levels(pictures))[1]

    return Extractor("the scenes reader", hash_reader(reader), "none", features)


def compute_real_features(extractor: Extractor, pictures: SquarePictures) -> tuple[Tensor, str]:
    """Returns features `[m, d]` of real pictures, and the pictures' hash."""
    total = hashlib.sha256()
    parts = []
    for start in range(0, len(pictures), _AT_ONCE):
        images = [pictures[i].image for i in range(start, min(start + _AT_ONCE, len(pictures)))]
        levels = to_levels(to_pixels(images))
        total.update(levels.numpy().data)
        parts.append(extractor.features(levels))
    return torch.cat(parts), total.hexdigest()
