"""Pictures and captions as the network sees them: encoded once and kept where they fit, else batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.data.latents import DroppedPicture, LatentBatch
from fewstep.data.pictures import to_pixels
from fewstep.data.reading import PictureReader
from fewstep.models.encoded import Keeping, encode_pictures, share_encoded
from fewstep.models.family import LatentModel


class _Latents:
    """What both ways share: the reading, and the account of what it could not read."""

    def __init__(self, model: LatentModel, reading: PictureReader) -> None:
        self._model, self._reading = model, reading
        self._lost: list[DroppedPicture] = []

    def shape_at(self, counters: range) -> tuple[int, ...]:
        return self._model.codec.shape(*self._reading.sides_at(counters))

    def keys(self, counters: range) -> list[str]:
        return [self._reading.key(int(i)) for i in self._reading.indices(counters)]

    def dropped(self) -> list[DroppedPicture]:
        lost, self._lost = self._lost, []
        return lost


class KeptLatents(_Latents):
    """Everything encoded beforehand and kept in main memory; a batch is a look-up. Only where a picture is cut alike
    wherever it stands. What encoded it is put off the card."""

    def __init__(self, model: LatentModel, reading: PictureReader, keeping: Keeping | None = None) -> None:
        """Encodes pictures, or reads them from where `keeping` says, if it is given and they are whole there."""
        super().__init__(model, reading)
        encoded = encode_pictures(model, reading) if keeping is None else share_encoded(model, reading, keeping)
        self._device = model.device
        if self._device.type == "cuda":  # from where a card takes it while it computes
            pinned = {name: value.pin_memory() for name, value in encoded.tensors().items()}
            encoded = encoded.with_tensors(pinned)
        self.encoded = encoded
        model.rest()

    def _take(self, held: Tensor, index: Tensor) -> Tensor:
        """Returns rows of what is kept, on the device."""
        rows = held[index]
        return (rows.pin_memory() if self._device.type == "cuda" else rows).to(self._device, non_blocking=True)

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        indices = self._reading.indices(counters)
        reasons = [self.encoded.reasons[i] for i in indices]
        keyed = zip(counters, indices, reasons, strict=True)
        self._lost += [DroppedPicture(i, self._reading.key(int(index)), reason) for i, index, reason in keyed if reason]
        index = torch.from_numpy(indices)
        drawn = [
            self._reading.draw_caption(self.encoded.rows[int(i)], counter)
            for counter, i in zip(counters, indices, strict=True)
        ]
        row = torch.tensor(drawn)
        cond = {name: self._take(value, row) for name, value in self.encoded.text.items()}
        cond |= {name: self._take(value, index) for name, value in self.encoded.sizes.items()}
        mean, std = (
            self._take(held, index)[:, : noise[0].numel()].view_as(noise)
            for held in (self.encoded.mean, self.encoded.std)
        )  # fmt: skip
        z_0 = mean + std * noise
        return LatentBatch(z_0, cond, _valid(reasons, self._device))


class FreshLatents(_Latents):
    """Every batch encoded when it is asked for."""

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        squares = self._reading.read_squares(counters)
        self._lost += self._reading.list_dropped(counters, squares)
        mean, std = self._model.codec.encode(to_pixels([square.image for square in squares]))
        conditioner = self._model.conditioner
        cond = conditioner.encode([square.caption for square in squares])
        cond |= conditioner.tell_sizes([square.sizes for square in squares])
        valid = _valid([square.reason for square in squares], mean.device)
        return LatentBatch(mean + std * noise, cond, valid)


def _valid(reasons: Sequence[str], device: torch.device) -> Tensor:
    return torch.tensor([not reason for reason in reasons]).to(device, non_blocking=True)


def encode(
    model: LatentModel, reading: PictureReader, keep_gib: float, keeping: Keeping | None = None, count: int = 0
) -> KeptLatents | FreshLatents:
    """Keeps the latents and texts when they need at most `keep_gib` GiB and no picture is cut in several ways; on
    the disk too, if `keeping` says where. `count` is that of all pictures where `reading` has the first of them."""
    channels, height, width = model.codec.shape(reading.crop_settings.resolution)
    text = sum(value.numel() for value in model.conditioner.encode([""]).values())
    needed = (count or len(reading)) * 4 * (2 * channels * height * width + text) / 2**30
    if needed <= keep_gib and reading.crop_settings.is_fixed:
        return KeptLatents(model, reading, keeping)
    return FreshLatents(model, reading)
