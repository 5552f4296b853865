"""Pixels to latents and back, as a diffusion model's autoencoder has them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.models.card import is_number
from fewstep.models.network import hash_weights

PIXELS_AT_ONCE = 2**20
"""Bounds what the autoencoder sees together: one picture of 1024 pixels' side, or four of 512: gigabytes of memory."""


@dataclass(frozen=True)
class Codec:
    """An autoencoder in diffusers' layout, with the scale and shift that its latents are used at.

    A family whose autoencoder is of another layout has a subclass in its file.
    """

    autoencoder: Any
    """Has `encode(pixels).latent_dist`, `decode(z).sample` and a `config`, as diffusers' AutoencoderKL."""
    tiny_decoder: Any = None
    """Decodes in the autoencoder's place, faster and less exactly; its own scale counts."""

    home: torch.device | None = None
    """Where the autoencoder computes, if it rests elsewhere."""

    patch: int = 1
    """Latents that the network takes as one, in each direction."""

    def __post_init__(self) -> None:
        self.check_scale()

    def check_scale(self) -> None:
        """Raises UserError where latents cannot be scaled by what the configurations say."""
        for part in filter(None, (self.autoencoder, self.tiny_decoder)):
            _check_scale(part.config)

    @property
    def multiple(self) -> int:
        """Pixels a latent, in each direction."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def unit(self) -> int:
        """Pixels of which the sides of pictures are multiples."""
        return self.multiple * self.patch

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.autoencoder.config.latent_channels)

    @property
    def scale(self) -> float:
        """Returns what latents are multiplied by before the network sees them."""
        return float(self.autoencoder.config.scaling_factor)

    def shape(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """Returns `(c, h, w)` of the latents of pictures that high and wide, in pixels; square if no width is given."""
        return (self.channels, height // self.multiple, (width or height) // self.multiple)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the scaled latents of `[b, 3, h, w]` in [−1, 1]."""
        first = next(self.autoencoder.parameters())
        device, dtype = self.home or first.device, first.dtype
        together = max(1, PIXELS_AT_ONCE // pixels[0, 0].numel())
        means, stds = [], []
        for part in pixels.split(together):
            given = part.to(device, dtype).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, enabled=False):
                mean, std = self.read_posterior(given)
            means.append(mean.float())
            stds.append(std.float())
        mean, std = self.scale_latents(torch.cat(means), torch.cat(stds))
        return mean.contiguous(), std.contiguous()

    def read_posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of what the autoencoder itself makes of pixels, `[b, c, h, w]`."""
        posterior = self.autoencoder.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    def scale_latents(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Returns them as the network sees them, of those that `read_posterior` returns, fp32."""
        shift, scale = _read_shift(self.autoencoder), self.autoencoder.config.scaling_factor
        if (spread := _read_spread(self.autoencoder)) is not None:
            scale = scale / spread.to(mean.device)
        return (mean - (shift.to(mean.device) if isinstance(shift, Tensor) else shift)) * scale, std * scale

    @torch.no_grad()
    def decode(self, z_0: Tensor) -> Tensor:
        """Returns pixels `[b, 3, h, w]` of scaled latents."""
        decoder = self.tiny_decoder or self.autoencoder
        z = self.unscale_latents(z_0, decoder).to(decoder.dtype)
        together = max(1, PIXELS_AT_ONCE // (z_0[0, 0].numel() * self.multiple**2))
        parts = [part.contiguous(memory_format=torch.channels_last) for part in z.split(together)]
        return torch.cat([self.paint_pixels(decoder, part).float() for part in parts])

    def unscale_latents(self, z_0: Tensor, decoder: Any) -> Tensor:
        """Undoes `scale_latents`, at the scale that a decoder's configuration says."""
        z: Tensor = z_0 / decoder.config.scaling_factor
        if (spread := _read_spread(decoder)) is not None:
            z = z * spread.to(z.device)
        shift = _read_shift(decoder)
        if isinstance(shift, Tensor) or shift:
            z = z + (shift.to(z.device) if isinstance(shift, Tensor) else shift)
        return z

    def paint_pixels(self, decoder: Any, z: Tensor) -> Tensor:
        """Returns pixels `[b, 3, h, w]` of latents as the decoder itself has them."""
        pixels: Tensor = decoder.decode(z).sample
        return pixels

    @classmethod
    def check_tiny_decoder(cls) -> None:
        """Raises UserError where no tiny decoder knows such latents."""

    def with_tiny_decoder(self, tiny_decoder: Any) -> Codec:
        """Returns the same with another decoder. Raises UserError where its latents would be others."""
        self.check_tiny_decoder()
        if _read_spread(self.autoencoder) is not None:
            raise UserError(
                "a tiny decoder is used to latents that are scaled alone, and this model's have a mean and a deviation "
                "for each channel; leave --tiny-decoder out"
            )
        return dataclasses.replace(self, tiny_decoder=tiny_decoder)

    def describe(self) -> dict[str, Any]:
        """Returns what latents depend on, as prepared latents record it."""
        config = self.autoencoder.config
        given = {name: value for name in _SHIFTS if (value := getattr(config, name, None))}
        return {"vae_sha256": hash_weights(self.autoencoder), "scaling_factor": self.scale, **given}


def _check_scale(config: Any) -> None:
    """Raises UserError where latents cannot be scaled and shifted by what a configuration says."""
    scale, shift = config.scaling_factor, getattr(config, "shift_factor", None)
    if not (is_number(scale) and scale > 0):
        raise UserError(f"the autoencoder's config.json has scaling_factor {scale!r:.60}; expected a number above 0")
    if not (shift is None or is_number(shift)):
        raise UserError(f"the autoencoder's config.json has shift_factor {shift!r:.60}; expected a number")


_SHIFTS = ("shift_factor", "latents_mean", "latents_std")
"""What latents are shifted and divided by, where an autoencoder says so."""


def _read_shift(autoencoder: Any) -> float | Tensor:
    """Returns what is taken from latents before they are scaled, a number or `[1, c, 1, 1]`; most have none."""
    if (mean := getattr(autoencoder.config, "latents_mean", None)) is not None:
        return _shape_channels(mean)
    return float(getattr(autoencoder.config, "shift_factor", None) or 0.0)


def _read_spread(autoencoder: Any) -> Tensor | None:
    """Returns what latents are divided by as they are scaled, `[1, c, 1, 1]`, or None."""
    std = getattr(autoencoder.config, "latents_std", None)
    return None if std is None else _shape_channels(std)


def _shape_channels(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
