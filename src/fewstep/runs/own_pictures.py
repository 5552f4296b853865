"""Whether a model can learn from pictures of one's own: what its autoencoder makes of them, and which words are new."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from fewstep import assets
from fewstep.data.kind import SourceRequest
from fewstep.data.opening import open_pictures
from fewstep.data.pictures import to_images, to_pixels
from fewstep.data.sources.base import Source
from fewstep.data.sources.fitting import fit_square
from fewstep.errors import show
from fewstep.evaluate.grid import labelled_grid
from fewstep.files import write_whole
from fewstep.models.family import LatentModel
from fewstep.models.vocabulary import find_vocabulary
from fewstep.parallel.world import current_world
from fewstep.runs.material import Material

PICTURE = "autoencoder.png"
"""The file in a run folder that shows pictures before and after the autoencoder."""
MOST_TIMES = 3.0
"""How many times the error on its own world an autoencoder may make on pictures that it holds.

Measured with the bundled one at 64 pixels, as root mean square: 0.016 on scenes, of which none has more than 0.025;
0.074 to 0.32 on each of 19 photographs; 0.19 on the gallery's emoji.
"""
_LOOKED_AT = 8
_DRAWN_SIDE = 64
"""Pixels in which both worlds are drawn."""
_MOST_CAPTIONS = 20_000
_WORLDS = (assets.SCENES, assets.GALLERY)
logger = logging.getLogger(__name__)


def warn_of_autoencoder(model: LatentModel, material: Material, run: Path | None) -> bool:
    """Says in two lines where the autoencoder cannot hold the pictures of a run, and shows it in the run's folder.

    Only a model that was taught one drawn world from scratch is asked: how well it holds that is the measure, and any
    other autoencoder was made for pictures of all kinds. Returns whether it was said.
    """
    if not current_world().main or (own := _open_own_world(model)) is None:
        return False
    if not (pictures := material.read_squares(_LOOKED_AT)):
        return False
    given = [own.read(i).image for i in range(_LOOKED_AT)]
    usual, _ = pass_through(model, [fit_square(each, material.resolution) for each in given])
    error, after = pass_through(model, pictures)
    if error <= MOST_TIMES * usual:
        return False
    name = show(assets.find_name(model.source))
    logger.warning(
        f"warning: the autoencoder of {name} cannot hold these pictures: what comes out of it is "
        f"{error / usual:.0f} times as far off as on the pictures that it was made for"
    )
    seen = ""
    if run is not None:
        rows = [("your pictures", pictures), ("after the autoencoder", after)]
        with write_whole(run / PICTURE) as draft:
            labelled_grid(rows, [""] * len(pictures)).save(draft, format="png")
        seen = f"see {show(run / PICTURE)}; "
    logger.warning(f"  {seen}no training mends that: give a model made for such pictures, with --model")
    return True


@torch.no_grad()
def pass_through(model: LatentModel, pictures: Sequence[Image.Image]) -> tuple[float, list[Image.Image]]:
    """Returns the root mean square error, of values in [0, 1], that encoding and decoding make; and what comes out."""
    errors, after = [], []
    for picture in pictures:  # of one shape each, where there are buckets
        pixels = to_pixels([picture])
        out = model.codec.decode(model.codec.encode(pixels)[0]).clamp(-1, 1)
        errors.append(float((out.cpu() - pixels.cpu()).square().mean()) / 4)
        after += to_images(out)
    return float(sum(errors) / len(errors)) ** 0.5, after


def find_taught(model: LatentModel, material: Material) -> tuple[str, ...] | None:
    """Returns the words of the captions that the model's text encoder never learnt, with those that its trainings
    before this one taught; None where there are none, or the model reads any word."""
    vocabulary = find_vocabulary(model.conditioner)
    if vocabulary is None:
        return None
    new = vocabulary.find_unknown(material.read_captions(_MOST_CAPTIONS))
    return tuple(sorted({*(model.card.learnt_words or ()), *new})) or None


def _open_own_world(model: LatentModel) -> Source | None:
    """Opens the drawn world that a model was taught, by the words that it knows; None where it was taught none."""
    vocabulary = find_vocabulary(model.conditioner)
    if vocabulary is None:
        return None
    for name in _WORLDS:
        world = open_pictures(SourceRequest(data=name, resolution=_DRAWN_SIDE, count=_LOOKED_AT))
        if not vocabulary.find_unknown(world.caption(i) for i in range(_LOOKED_AT)):
            return world
    return None
