"""What pictures of scenes are scored with: the bundled reader, its features, and scenes drawn afresh."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fewstep import assets
from fewstep.data.pictures import from_levels, to_levels, to_pixels
from fewstep.data.sources.squares import SquarePictures
from fewstep.data.worlds.drawing import SIDE
from fewstep.data.worlds.scene import Look
from fewstep.data.worlds.scenes import SceneExamples, Scenes
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.reader import Reader, load_reader, read
from fewstep.evaluate.roster import PROMPT_SEED, Roster
from fewstep.models.extractors import Extractor

REFERENCE_SCENES = 2048
_AT_ONCE = 64


def reference_scenes(look: Look = "plain") -> SquarePictures:
    """Draws real pictures that no training set holds by default."""
    return SquarePictures(SceneExamples(Scenes(PROMPT_SEED + 1, "seen", look), REFERENCE_SCENES), SIDE)


def scenes_bench(roster: Roster, reader: Reader | None = None) -> Bench:
    """Makes a bench for scores outside `fewstep evaluate`, with the bundled reader where none is given."""
    reader = reader or load_reader(assets.scenes_reader())
    extractor = reader_extractor(reader)
    return Bench(roster, extractor, real_features(extractor, reference_scenes())[0], reader)


def reader_extractor(reader: Reader) -> Extractor:
    """Makes an extractor that takes uint8 pictures to the reader's features."""
    total = hashlib.sha256()
    for name, value in sorted(reader.state_dict().items()):
        total.update(name.encode() + value.contiguous().numpy().tobytes())

    def features(pictures: Tensor) -> Tensor:
        return read(reader, from_levels(pictures))[1]

    return Extractor("the scenes reader", total.hexdigest(), "none", features)


def real_features(extractor: Extractor, pictures: SquarePictures) -> tuple[Tensor, str]:
    """Returns features `[m, d]` of real pictures, and the pictures' hash."""
    total = hashlib.sha256()
    parts = []
    for start in range(0, len(pictures), _AT_ONCE):
        images = [pictures[i].image for i in range(start, min(start + _AT_ONCE, len(pictures)))]
        levels = to_levels(to_pixels(images))
        total.update(levels.numpy().data)
        parts.append(extractor.features(levels))
    return torch.cat(parts), total.hexdigest()
