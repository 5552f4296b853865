"""An adversarial loss on where answers land, as pure functions (PCM, arXiv 2405.18407, as its released code has it).

The student's answer and its target's are noised on from their end e to one time τ, where a frozen teacher reads both.
Small heads on its features learn to tell them apart, and the student to be taken for its target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.method.sampling import bring


class Head(nn.Module):
    """Says at every position of one level's features `[b, c, h, w]` how much the answer looks like the target's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = math.gcd(width, min(32, max(1, width // 8)))  # PCM's 32, of eight channels at least
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(width, width, 1), nn.GroupNorm(groups, width), nn.LeakyReLU()) for _ in range(2)
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.first(features.to(self.last.weight.dtype))
        verdicts: Tensor = self.last(self.second(inner) + inner)
        return verdicts


class Heads(nn.Module):
    """Holds a head for every level of a teacher."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(map(Head, widths))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns a `[b, 1, h, w]` for each level."""
        return [head(each) for head, each in zip(self.levels, features, strict=True)]


@dataclass(frozen=True)
class Renoising:
    """Brings what stands at e to τ, real and fake by the same noise."""

    schedule: Schedule
    e: Tensor
    tau: Tensor
    noise: Tensor

    def __call__(self, z_e: Tensor) -> Tensor:
        return bring(self.schedule, z_e, self.tau, self.noise, self.e)


def draw_tau(schedule: Schedule, e: Tensor, lengths: Tensor, u: Tensor) -> Tensor:
    """Returns whole times from e on within a phase of `lengths` `[b]`, equally likely for `u` `[b]` in [0, 1)."""
    lengths, u = lengths.to(e.device), u.to(e.device)
    return e + (u * torch.minimum(lengths, schedule.last + 1 - e)).long()


def student_losses(verdicts: Sequence[Tensor]) -> Tensor:
    """Returns `[b]`: mean max(0, 1 − D) of the student's answers, over levels and positions."""
    return _mean([(1 - each).relu() for each in verdicts])


def heads_losses(
    heads: Callable[[list[Tensor]], list[Tensor]], fake: Sequence[Tensor], real: Sequence[Tensor]
) -> Tensor:  # fmt: skip
    """Returns `[b]`: mean max(0, 1 + D) of the student's answers and max(0, 1 − D) of the target's, by their features,
    which `heads` see in one pass."""
    verdicts = heads([torch.cat(both) for both in zip(fake, real, strict=True)])
    of_fake, of_real = zip(*(each.chunk(2) for each in verdicts), strict=True)
    return _mean([(1 + each).relu() for each in of_fake]) + _mean([(1 - each).relu() for each in of_real])


def _mean(maps: Sequence[Tensor]) -> Tensor:
    """Returns the mean over levels, each counting alike `[b]`."""
    at_least = [each.to(torch.promote_types(each.dtype, torch.float32)) for each in maps]
    return torch.stack([each.flatten(1).mean(1) for each in at_least]).mean(0)
