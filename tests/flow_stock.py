"""How the stock pipelines of flow transformers are asked for what fewstep's own make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Stock:
    """How a stock pipeline is asked for latents of 64 pixels, and what it makes of them; most as they are."""

    shape: tuple[int, int, int] = (16, 8, 8)
    pack: Callable[[Any, torch.Tensor], torch.Tensor] = lambda _pipe, latents: latents
    unpack: Callable[[Any, torch.Tensor], torch.Tensor] = lambda _pipe, latents: latents
    pack_noise: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    """For noise between the steps, where that is packed otherwise than what is given at first."""
    encode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, pixels: pipe.vae.encode(pixels).latent_dist.mean
    decode: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, own: pipe.vae.decode(own).sample
    scale: Callable[[Any, torch.Tensor], torch.Tensor] = lambda pipe, own: (
        (own - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    )
    """Of what the autoencoder itself makes of pixels."""
    shifts_by_steps: bool = False
    """Whether its times depend on how many they are by more than their share."""
    guide: Callable[[float], dict[str, Any]] = lambda scale: {"guidance_scale": scale}


def _normalise(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    """Undoes what FLUX.2's pipeline does to latents before it returns them."""
    norm = pipe.vae.bn
    std = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return (latents - norm.running_mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


STOCK = {
    "StableDiffusion3Pipeline": Stock(),
    "ZImagePipeline": Stock(),
    "FluxPipeline": Stock(
        pack=lambda pipe, latents: pipe._pack_latents(latents, 1, 16, 8, 8),
        unpack=lambda pipe, latents: pipe._unpack_latents(latents, 64, 64, 8),
    ),
    "QwenImagePipeline": Stock(
        pack=lambda pipe, latents: pipe._pack_latents(latents, 1, 16, 8, 8),
        unpack=lambda pipe, latents: pipe._unpack_latents(latents, 64, 64, 8).squeeze(2),
        encode=lambda pipe, pixels: pipe.vae.encode(pixels.unsqueeze(2)).latent_dist.mean,
        decode=lambda pipe, own: pipe.vae.decode(own).sample.squeeze(2),
        scale=lambda pipe, own: (
            (own.squeeze(2) - torch.tensor(pipe.vae.config.latents_mean).view(1, -1, 1, 1))
            / torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1)
        ),
        guide=lambda scale: {"true_cfg_scale": scale, "negative_prompt": " "},
        shifts_by_steps=True,
    ),
    "Flux2KleinPipeline": Stock(
        shape=(32, 4, 4),
        pack_noise=lambda pipe, noise: pipe._pack_latents(noise),
        unpack=lambda pipe, latents: _normalise(pipe, pipe._patchify_latents(latents)),
        scale=lambda pipe, own: _normalise(pipe, pipe._patchify_latents(own)),
        shifts_by_steps=True,
    ),
    "PixArtSigmaPipeline": Stock(scale=lambda pipe, own: own * pipe.vae.config.scaling_factor, shape=(4, 8, 8)),
    "SanaPipeline": Stock(
        shape=(32, 2, 2),
        encode=lambda pipe, pixels: pipe.vae.encode(pixels).latent,
        scale=lambda pipe, own: own * pipe.vae.config.scaling_factor,
        shifts_by_steps=True,
        guide=lambda scale: {"guidance_scale": scale, "use_resolution_binning": False},
    ),
}
"""By the class of the pipeline."""
