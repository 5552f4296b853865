"""The three training tasks of a teacher: reconstruction, the meaning of captions, and diffusion."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.data import draws
from fewstep.data.order import SampleOrder
from fewstep.data.worlds.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene
from fewstep.diffusion.schedule import Schedule
from fewstep.train.task import Loss, StudentTask


class AutoencoderTask(StudentTask):
    """Trains by the loss of pixels and a small KL term."""

    KL_WEIGHT = 1e-4

    def __init__(self, autoencoder: nn.Module, pixels: Callable[[range], Tensor], seed: int) -> None:
        """`pixels(counters)` returns `[b, 3, h, w]` in [−1, 1]."""
        self.averaged = copy.deepcopy(autoencoder)
        self.student = autoencoder
        normalise_in_fp32(autoencoder)
        self._pixels, self._seed = pixels, seed

    def loss(self, counters: range) -> Loss:
        x = self._pixels(counters).contiguous(memory_format=torch.channels_last)
        posterior = self.student.encode(x).latent_dist
        noise = draws.normal(self._seed, "vae", counters, posterior.mean.shape[1:])
        error = self.student.decode(posterior.mean + posterior.std * noise).sample.float() - x
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return Loss.from_mean(compute_pixel_loss(error) + self.KL_WEIGHT * kl, counters)


def compute_pixel_loss(error: Tensor) -> Tensor:
    """Returns the mean squared error plus that of the differences between neighbouring pixels, of `[b, 3, h, w]`.

    Absolute error would settle on the median and lose the colours, since the pictures are mostly flat.
    """
    return error.square().mean() + error.diff(dim=-1).square().mean() + error.diff(dim=-2).square().mean()


def normalise_in_fp32(network: nn.Module) -> None:
    """Makes group norms compute in fp32 under autocast: their bf16 backward is five times slower on a CPU."""

    def forward(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return functional.group_norm(x.float(), norm.num_groups, norm.weight, norm.bias, norm.eps).to(x.dtype)

    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = functools.partial(forward, module)  # type: ignore[method-assign]  # of these instances only


_THING = (SHAPES, COLOURS, SIZES)
STATED = (RELATIONS, BACKGROUNDS, *_THING, *_THING)
"""What a caption may state: relation; background; shape, colour and size of the first thing, then of the second."""


class CaptionTask(StudentTask):
    """Trains by the cross entropy of all that a caption states, read from the text encoder's output after its end.

    Stable Diffusion's text encoder is pretrained. One trained from scratch learns slowly from the diffusion loss alone
    (docs/log.md).
    """

    def __init__(
        self, text_encoder: nn.Module, tokens: Tensor, options: Sequence[Sequence[Any]], answers: Sequence[list[int]],
        seed: int,
    ) -> None:  # fmt: skip
        """`tokens` `[n, l]` are captions, and `answers` the number of the option that each states, from 1, or 0."""
        config: Any = text_encoder.config
        sizes = [len(each) + 1 for each in options]
        heads = nn.Linear(config.hidden_size, sum(sizes))
        self.student = nn.ModuleDict({"text_encoder": text_encoder, "heads": heads})
        self.averaged = copy.deepcopy(self.student)
        self._tokens, self._end, self._sizes = tokens, config.eos_token_id, sizes
        self._order = SampleOrder(seed, (len(tokens),))
        self._answers = torch.tensor(answers)

    def logits(self, network: nn.ModuleDict, tokens: Tensor) -> list[Tensor]:
        """Returns logits `[b, k]` for each that may be stated; answer 0 means "not stated"."""
        return self.read(network, tokens, network["text_encoder"](tokens)[0])

    def read(self, network: nn.ModuleDict, tokens: Tensor, text: Tensor) -> list[Tensor]:
        """Returns the same of captions that are encoded, as `text` `[b, l, d]`."""
        ended = (tokens == self._end).float()[..., None]
        return list(network["heads"]((text * ended).sum(1) / ended.sum(1)).split(self._sizes, dim=1))

    def loss(self, counters: range) -> Loss:
        index = torch.tensor(self._order(counters))
        logits = self.logits(self.student, self._tokens[index])
        return Loss.from_mean(compute_caption_loss(logits, self._answers[index]), counters)


def compute_caption_loss(logits: Sequence[Tensor], answers: Tensor) -> Tensor:
    """Returns the cross entropy of answers `[b, m]`, each by its logits `[b, k]`, summed over the m."""
    pairs = zip(logits, answers.T, strict=True)
    return torch.stack([functional.cross_entropy(each.float(), answer) for each, answer in pairs]).sum()


def list_answers(stated: Scene) -> list[int]:
    """Returns, for each of STATED, the number of the stated option, counted from 1, or 0 where none is stated."""
    words: list[str | None] = [stated.relation, stated.background]
    for thing in (*stated.things, None)[:2]:
        words += [thing.shape, thing.colour, thing.size] if thing else [None] * 3
    return [0 if word is None else 1 + options.index(word) for word, options in zip(words, STATED, strict=True)]


class DiffusionTask(StudentTask):
    """Trains by ‖v − v̂(z_t, t, c)‖², v = α·ε − σ·z_0, with c replaced by the empty caption at a rate of `DROP_RATE`.

    At large t the caption decides what the picture becomes, but a loss on ε weights an error of z_0 by α²/σ² there.
    For the same reason t is drawn with a density that grows with t.
    """

    DROP_RATE = 0.12

    def __init__(self, unet: nn.Module, schedule: Schedule, latents: Tensor, text: Tensor, seed: int) -> None:
        """`latents` `[n, c, h, w]` are the training set; `text` `[n + 1, l, d]` its encoded captions,
        the empty one last."""
        self.student = unet
        self.averaged = copy.deepcopy(unet)
        self._schedule, self._latents, self._text, self._seed = schedule, latents, text, seed
        self._order = SampleOrder(seed, (len(latents),))

    def loss(self, counters: range) -> Loss:
        index = torch.tensor(self._order(counters))
        z_0 = self._latents[index]
        dropped = draws.uniform(self._seed, "drop", counters) < self.DROP_RATE
        text = self._text[torch.where(dropped, len(self._latents), index)]
        t = self._schedule.pick(draws.uniform(self._seed, "t", counters).sqrt())
        epsilon = draws.normal(self._seed, "epsilon", counters, z_0.shape[1:])
        output = self.student(self._schedule.diffuse(z_0, epsilon, t), t, text).sample
        alpha, sigma = self._schedule.coefficients(t, z_0)
        return Loss.from_mean(functional.mse_loss(output.float(), alpha * epsilon - sigma * z_0), counters)
