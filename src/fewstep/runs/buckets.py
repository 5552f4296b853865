"""The shapes that a run's pictures have, where they are not all square."""

from __future__ import annotations

from fewstep.data.buckets import Sides, list_buckets
from fewstep.errors import UserError
from fewstep.models.family import LatentModel


def choose_buckets(model: LatentModel, resolution: int) -> tuple[Sides, ...]:
    """Returns the shapes of pictures of about that area. Raises UserError where `model` has no place for one."""
    buckets = list_buckets(resolution, model.codec.unit)
    longest = max(map(max, buckets))
    if longest > (most := model.family.largest_side(model.network.backbone.config, model.codec.multiple)):
        raise UserError(
            f"buckets of {resolution} pixels have sides of up to {longest}; the model has places for {most} pixels a "
            "side, give --buckets off, or a smaller --resolution"
        )
    return buckets
