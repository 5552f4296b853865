"""Latents that are known before any network has learnt: the principal components of blocks of 8×8 pixels.

An encoder and a decoder then learn to map to and from them, each by itself, while a UNet already learns on them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.data import draws
from fewstep.files import read_safetensors, write_whole
from fewstep.teacher.tasks import compute_pixel_loss, normalise_in_fp32
from fewstep.train.task import Loss, StudentTask

SIDE = 8
"""Side of a block in pixels: of each, one latent pixel is made."""
WHITENING = 0.5
"""A component is divided by its deviation to this power: 0 would leave fine ones lost in noise, 1 would make all of
them count alike."""


@dataclass(frozen=True)
class BlockCode:
    """A linear map from pixels `[b, 3, h, w]` to latents `[b, k, h/8, w/8]` whose mean square is 1, and back."""

    mean: Tensor
    """`[192]`, of a block."""
    basis: Tensor
    """`[192, k]`, orthonormal columns, from the coarsest component to the finest."""
    scale: Tensor
    """`[k]`, what the components are divided by."""

    @classmethod
    def fit(cls, pixels: Tensor, channels: int) -> Self:
        """Finds the `channels` components that rebuild blocks of these pictures with the least squared error."""
        blocks = _to_blocks(pixels).flatten(0, -2).double()
        mean = blocks.mean(0)
        variances, basis = torch.linalg.eigh((blocks - mean).T @ (blocks - mean) / len(blocks))
        variances, basis = variances.flip(0)[:channels], basis.flip(1)[:, :channels]
        scale = variances.sqrt() ** WHITENING
        scale = scale * (variances / scale.square()).mean().sqrt()
        return cls(mean.float(), basis.float(), scale.float())

    def encode(self, pixels: Tensor) -> Tensor:
        """Returns the latents of pixels in [−1, 1]."""
        return ((_to_blocks(pixels) - self.mean) @ self.basis / self.scale).movedim(-1, 1).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Returns the pictures that these components alone add up to."""
        blocks = (latents.movedim(1, -1) * self.scale) @ self.basis.T + self.mean
        return functional.pixel_shuffle(blocks.movedim(-1, 1), SIDE)

    def to(self, device: torch.device | str) -> Self:
        """Returns it on another device."""
        return type(self)(*(tensor.to(device) for tensor in vars(self).values()))

    def save(self, file: Path) -> None:
        """Writes it as safetensors."""
        with write_whole(file) as draft:
            safetensors.torch.save_file(vars(self) | {"basis": self.basis.contiguous()}, draft)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote."""
        return cls(**read_safetensors(file))


def _to_blocks(pixels: Tensor) -> Tensor:
    return functional.pixel_unshuffle(pixels, SIDE).movedim(1, -1)


class BlockAutoencoderTask(StudentTask):
    """Trains an autoencoder whose latents are those of a `BlockCode`: neither half waits for the other.

    The decoder learns by the loss of pixels and the squared error of `features`; the encoder by squared error of
    latents and of log variances, which say what noise the decoder is shown. The two losses share no weights.
    """

    FEATURE_WEIGHT = 0.15
    NOISE = 0.05
    """Deviation of the noise on the decoder's latents, so that small errors of painted ones do no harm."""

    def __init__(
        self, autoencoder: nn.Module, code: BlockCode, pixels: Callable[[range], Tensor], seed: int,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """`pixels(counters)` returns `[b, 3, h, w]` in [−1, 1].

        `features` are of a frozen network that knows what is to be recognised, and their squared error counts too (the
        perceptual loss of Johnson et al., arXiv 1603.08155): a small thing covers few pixels, and squared error alone
        leaves it blurred beyond recognition.
        """
        self.averaged = copy.deepcopy(autoencoder)
        self.student: Any = autoencoder
        normalise_in_fp32(autoencoder)
        self._code, self._pixels, self._seed, self._features = code, pixels, seed, features

    def loss(self, counters: range) -> Loss:
        x = self._pixels(counters)
        latents = self._code.encode(x)
        noise = draws.normal(self._seed, "vae", counters, latents.shape[1:])
        return Loss.from_mean(self.compute(self.student, x, latents, noise), counters)

    def compute(self, autoencoder: Any, x: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
        """Returns the mean loss on pixels with their latents, of which the decoder sees `NOISE` times the noise."""
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = autoencoder.encode(x).latent_dist
        logvar = 2 * math.log(self.NOISE)
        encoding = (posterior.mean.float() - latents).square() + 0.01 * (posterior.logvar.float() - logvar).square()
        error = autoencoder.decode(latents + self.NOISE * noise).sample.float() - x
        loss: Tensor = compute_pixel_loss(error) + encoding.mean()
        if self._features:
            with torch.no_grad():
                real = self._features(x)
            loss = loss + self.FEATURE_WEIGHT * (self._features(x + error) - real).float().square().mean()
        return loss
