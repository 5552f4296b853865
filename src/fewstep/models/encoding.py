"""Pictures and captions as the network sees them: encoded once and kept where they fit, else batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from fewstep.data.latents import Dropped, LatentBatch
from fewstep.data.order import Order
from fewstep.data.pictures import to_pixels
from fewstep.models.latent_model import LatentModel

_CHUNK = 64


class CaptionedPicture(Protocol):
    @property
    def image(self) -> Image.Image: ...

    @property
    def caption(self) -> str: ...


class PictureSource(Protocol):
    """Captioned RGB pictures of one square size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> CaptionedPicture: ...


class KeptLatents:
    """Everything encoded beforehand; a batch is a look-up."""

    def __init__(self, model: LatentModel, pictures: PictureSource, order: Order) -> None:
        self._order = order
        console = Console(stderr=True)
        starts: Sequence[int] = range(0, len(pictures), _CHUNK)
        means, stds = [], []
        numbers: dict[str, int] = {}  # equal captions are encoded once
        rows = []
        for start in track(
            starts, f"encoding {len(pictures)} pictures", console=console, disable=not console.is_terminal
        ):
            part = [pictures[i] for i in range(start, min(start + _CHUNK, len(pictures)))]
            mean, std = model.encode_pixels(to_pixels([example.image for example in part]))
            means.append(mean)
            stds.append(std)
            rows += [numbers.setdefault(example.caption, len(numbers)) for example in part]
        captions = list(numbers)
        texts = [model.encode_text(captions[i : i + _CHUNK]) for i in range(0, len(captions), _CHUNK)]
        self._mean, self._std = torch.cat(means), torch.cat(stds)
        self._text = {name: torch.cat([part[name] for part in texts]) for name in texts[0]}
        self._rows = torch.tensor(rows, device=model.device)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self._mean.shape[1:])

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        index = torch.from_numpy(self._order(counters)).to(self._mean.device, non_blocking=True)
        z_0 = self._mean[index] + self._std[index] * noise
        cond = {name: value[self._rows[index]] for name, value in self._text.items()}
        return LatentBatch(z_0, cond, torch.ones_like(index, dtype=torch.bool))

    def keys(self, counters: range) -> list[str]:
        return [str(i) for i in self._order(counters)]

    def dropped(self) -> list[Dropped]:
        return []


class FreshLatents:
    """Every batch encoded when it is asked for."""

    def __init__(self, model: LatentModel, pictures: PictureSource, resolution: int, order: Order) -> None:
        self._model, self._pictures, self._order = model, pictures, order
        self.latent_shape: tuple[int, ...] = model.latent_shape(resolution)

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        examples = [self._pictures[int(i)] for i in self._order(counters)]
        mean, std = self._model.encode_pixels(to_pixels([example.image for example in examples]))
        cond = self._model.encode_text([example.caption for example in examples])
        return LatentBatch(mean + std * noise, cond, torch.ones(len(counters), dtype=torch.bool, device=mean.device))

    def keys(self, counters: range) -> list[str]:
        return [str(i) for i in self._order(counters)]

    def dropped(self) -> list[Dropped]:
        return []


def encode(
    model: LatentModel, pictures: PictureSource, resolution: int, keep_gib: float, seed: int
) -> KeptLatents | FreshLatents:
    """Keeps the latents and texts when they need at most `keep_gib` GiB; `seed` puts the pictures in order."""
    order = Order(seed, (len(pictures),))
    channels, height, width = model.latent_shape(resolution)
    text = sum(value.numel() for value in model.encode_text([""]).values())
    needed = len(pictures) * 4 * (2 * channels * height * width + text) / 2**30
    if needed <= keep_gib:
        return KeptLatents(model, pictures, order)
    return FreshLatents(model, pictures, resolution, order)
