"""What a teacher is trained on: an autoencoder's reconstruction, and ordinary diffusion with captions dropped."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.data import draws
from fewstep.diffusion.schedule import Schedule


class AutoencoderTask:
    """Squared error, squared error of the differences between neighbouring pixels, and a little KL.

    Not the absolute error: on mostly flat pictures it settles on the median and loses the colours.
    """

    KL_WEIGHT = 1e-4

    def __init__(self, autoencoder: nn.Module, pixels: Callable[[range], Tensor], seed: int) -> None:
        """`pixels(counters)` gives `[b, 3, h, w]` in [−1, 1]."""
        self.averaged = copy.deepcopy(autoencoder)
        self.student = autoencoder
        _normalise_in_fp32(autoencoder)
        self._pixels, self._seed = pixels, seed

    def loss(self, counters: range) -> Tensor:
        x = self._pixels(counters).contiguous(memory_format=torch.channels_last)
        posterior = self.student.encode(x).latent_dist  # type: ignore[operator]
        noise = draws.normal(self._seed, "vae", counters, posterior.mean.shape[1:])
        error = self.student.decode(posterior.mean + posterior.std * noise).sample.float() - x  # type: ignore[operator]
        edges = error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return error.square().mean() + edges + self.KL_WEIGHT * kl


def _normalise_in_fp32(network: nn.Module) -> None:
    """Group norms compute in fp32 under autocast: their bf16 backward is five times slower on a CPU."""

    def forward(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return functional.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps).to(x.dtype)

    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = functools.partial(forward, module)  # type: ignore[method-assign]


class DiffusionTask:
    """‖v − v̂(z_t, t, c)‖², v = α·ε − σ·z_0, with c replaced by the empty caption at times.

    The text encoder learns along. In ε the loss hardly sees the large t at which a caption decides what the picture
    will be: there an error of z_0 counts α²/σ² times.
    """

    DROP_RATE = 0.12

    def __init__(
        self, unet: nn.Module, text_encoder: nn.Module, schedule: Schedule, latents: Tensor, tokens: Tensor, seed: int
    ) -> None:
        """`latents` [n, c, h, w] and `tokens` [n + 1, l] are the training set and, last, the empty caption."""
        self.student = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        self.averaged = copy.deepcopy(self.student)
        self._schedule, self._latents, self._tokens, self._seed = schedule, latents, tokens, seed

    def loss(self, counters: range) -> Tensor:
        index = torch.tensor(draws.order(self._seed, len(self._latents), counters))
        z_0 = self._latents[index]
        dropped = draws.uniform(self._seed, "drop", counters) < self.DROP_RATE
        tokens = self._tokens[torch.where(dropped, len(self._latents), index)]
        t = (draws.uniform(self._seed, "t", counters) * self._schedule.num_steps).long()
        epsilon = draws.normal(self._seed, "epsilon", counters, z_0.shape[1:])
        text = self.student["text_encoder"](tokens)[0]
        output = self.student["unet"](self._schedule.diffuse(z_0, epsilon, t), t, text).sample
        alpha, sigma = self._schedule.coefficients(t, z_0)
        return functional.mse_loss(output.float(), alpha * epsilon - sigma * z_0)
