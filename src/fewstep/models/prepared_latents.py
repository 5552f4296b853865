"""Training on latents that were encoded beforehand: texts are encoded batch by batch, pictures not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.buckets import Sides
from fewstep.data.latents import DroppedPicture, LatentBatch
from fewstep.data.order import Order, SampleOrder
from fewstep.data.reading import draw_caption
from fewstep.data.shards.prepared import PreparedShards
from fewstep.errors import UserError
from fewstep.models.codec import Codec
from fewstep.models.family import LatentModel


class PreparedLatents:
    """Reads the latents of one folder, in an order of its own."""

    def __init__(self, model: LatentModel, shards: PreparedShards, seed: int, order: Order | None = None) -> None:
        """`order` is that of the pictures, where they do not come in any."""
        self._model, self._shards, self._seed = model, shards, seed
        plain = SampleOrder(draws.key(seed, "source", 0), shards.shard_sizes, repeats=shards.shard_repeats)
        self._order = order or plain

    def shape_at(self, counters: range) -> tuple[int, ...]:
        first = self._shards.locate(int(self._order(counters[:1])[0]))
        return tuple(self._shards.read_latent(*first, "mean").shape)

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        places = [self._shards.locate(int(i)) for i in self._order(counters)]
        rows = [self._shards.read_row(*place) for place in places]
        device = self._model.device
        z_0 = self._stacked(places, "mean").to(device, non_blocking=True)
        if self._shards.made_of.get("std"):
            z_0 = z_0 + self._stacked(places, "std").to(device, non_blocking=True) * noise
        conditioner = self._model.conditioner
        captions = [
            draw_caption((row.caption, *row.others), self._seed, i) for i, row in zip(counters, rows, strict=True)
        ]
        cond = conditioner.encode(captions) | conditioner.tell_sizes([row.sizes for row in rows])
        return LatentBatch(z_0, cond, torch.ones(len(rows), dtype=torch.bool, device=device))

    def _stacked(self, places: list[tuple[int, int]], part: str) -> Tensor:
        return torch.stack([self._shards.read_latent(*place, part) for place in places]).float()

    def keys(self, counters: range) -> list[str]:
        return [self._shards.read_row(*self._shards.locate(int(i))).key for i in self._order(counters)]

    def dropped(self) -> list[DroppedPicture]:
        return []  # what could not be read was left out when they were prepared


def made_of(
    codec: Codec, *, resolution: int, crop: str, std: bool, seed: int, buckets: Sequence[Sides] = ()
) -> dict[str, Any]:  # fmt: skip
    """Returns what latents depend on, beside the pictures."""
    shapes = {"buckets": [list(sides) for sides in buckets]} if buckets else {}
    return {
        "format": 1, **codec.describe(), "resolution": resolution, "crop": crop, "std": std, "seed": seed, **shapes,
    }  # fmt: skip


def check_made_for(
    shards: PreparedShards, model: LatentModel, resolution: int, buckets: Sequence[Sides] = ()
) -> None:  # fmt: skip
    """Raises UserError naming the field in which prepared latents and a model do not agree."""
    if "buckets" in shards.made_of and not buckets:
        raise UserError(f"{shards.place} was prepared with buckets; give --buckets on")
    held: Mapping[str, Any] = shards.made_of
    wanted = made_of(model.codec, resolution=resolution, crop="", std=True, seed=0, buckets=buckets)
    for name in ("format", *model.codec.describe(), "resolution", "buckets"):
        if held.get(name) != (own := wanted.get(name)):
            raise UserError(
                f"{shards.place} was prepared with {name} {held.get(name)}, this model and run have {own}; prepare "
                "the pictures again for it"
            )
