"""What a run learns from, whatever --data holds."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.data.latents import LatentSource
from fewstep.data.shards.manifest import TRAJECTORIES, is_prepared, read_kind
from fewstep.errors import UserError
from fewstep.models.family import LatentModel
from fewstep.parallel.world import current_world
from fewstep.recipes.pictures import PictureOptions, TrainingConfig

PICTURES = "pictures"
_KINDS = {
    PICTURES: "fewstep.runs.picture_material",
    "latents": "fewstep.runs.latent_material",
    TRAJECTORIES: "fewstep.runs.trajectories",
}
"""Modules by what `--data` holds; only that of what a run learns from is imported."""


@dataclass(frozen=True)
class Material:
    """What a run learns from."""

    latents: Callable[[], LatentSource]
    """Encodes the pictures, if they are to be kept encoded."""
    count: int
    """Pictures that there are, or steps of trajectories."""
    resolution: int
    """Side of its pictures in pixels."""
    captions: list[str]
    """Holds the first few."""
    account: dict[str, Any]
    """What was found, used and dropped of each source."""
    identity: str
    """Hash of what stands where."""
    read_squares: Callable[[int], list[Image.Image]] = lambda _: []
    """Reads that many of its pictures, from all over it, as they are cut; none where only their latents are there."""
    read_captions: Callable[[int], Iterable[str]] = lambda _: ()
    """Reads its first so many captions."""
    keep: Callable[[int], None] = lambda _: None
    """Keeps the account in the run folder, called after every update."""


def choose_resolution(config: PictureOptions, model: LatentModel) -> int:
    """Returns the side of the pictures in pixels. Raises UserError where `model` cannot have it."""
    resolution = choose_side(config, model.resolution, model.codec.unit)
    if resolution > (most := model.family.largest_side(model.network.backbone.config, model.codec.multiple)):
        raise UserError(f"resolution is {resolution}; the model has places for {most} pixels a side, give less")
    return resolution


def choose_side(config: PictureOptions, own: int, unit: int) -> int:
    """Returns the side of the pictures in pixels, of a model whose `own` it is. Raises UserError."""
    resolution = config.resolution or own
    if resolution % unit:
        raise UserError(f"resolution is {resolution}; the model needs a multiple of {unit}")
    return resolution


def check_data(config: PictureOptions) -> None:
    """Raises UserError where pictures that a configuration names are not there, before a model is loaded."""
    if not is_prepared(config.data):
        importlib.import_module(_KINDS[PICTURES]).check_named(config)


ENCODED = "encoded"
"""The folder of a run in which encoded pictures are kept until it ends."""


def open_material(
    config: TrainingConfig, model: LatentModel, *, captions: int = 0, most: int = 0, run: Path | None = None
) -> Material:
    """Opens all that a configuration names, in its order, as `model` sees it, with its first few `captions`.

    Of pictures at most the first `most` of the first source are opened, if that is given; what is kept encoded of them
    is kept in the folder of a `run` too, if there is one. Raises UserError.
    """
    resolution = choose_resolution(config, model)
    kind = read_kind(config.data) if is_prepared(config.data) else PICTURES
    if kind != TRAJECTORIES and getattr(config, "states", "") == TRAJECTORIES:
        raise UserError(f"{config.data} holds no trajectories; `fewstep prepare --trajectories` makes a folder of them")
    opening: Any = importlib.import_module(_KINDS.get(kind, _KINDS["latents"]))  # whose reader says what is wrong
    material: Material = opening.open_kind(config, model, resolution, captions=captions, most=most, run=run)
    return material


def forget_encoded(run: Path) -> None:
    """Deletes what a run that has ended kept encoded."""
    if current_world().main:
        shutil.rmtree(run / ENCODED, ignore_errors=True)
