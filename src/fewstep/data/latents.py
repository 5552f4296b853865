"""Encoded pictures and captions, as a training asks for them by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fewstep.diffusion.prediction import Cond


@dataclass(frozen=True)
class LatentBatch:
    """Latents `z_0` `[b, c, h, w]` with their conditions; `valid` is bool `[b]`."""

    z_0: Tensor
    cond: Cond
    valid: Tensor
    """False for a picture that could not be read: its z_0 has no meaning and must not enter the loss."""


@dataclass(frozen=True)
class StepBatch(LatentBatch):
    """Places z_t `[b, c, h, w]` on trajectories; z_0 is where each ends."""

    z_t: Tensor
    hops: Tensor
    """Counts the steps of its trajectory that lie behind each, `[b]`, on the CPU."""
    omega: Tensor
    """What the trajectories were guided by, `[b]`."""


@dataclass(frozen=True)
class DroppedPicture:
    """A picture that a run could not read."""

    counter: int
    """Is its position in the run."""
    key: str
    reason: str


class LatentSource(Protocol):
    """Latents as a pure function of the position; its only state is the list of pictures that could not be read."""

    def shape_at(self, counters: range) -> tuple[int, ...]:
        """Returns `[c, h, w]` of the latents at these positions, which are of one batch."""
        ...

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        """Returns the latents at these positions; `noise`, shaped like z_0, samples the autoencoder's posterior."""
        ...

    def keys(self, counters: range) -> Sequence[str]:
        """Returns the names of the pictures at these positions."""
        ...

    def dropped(self) -> list[DroppedPicture]:
        """Returns what could not be read since the last call."""
        ...


class StepSource:
    """Marks a source of steps that a teacher took beforehand, whose batches are `StepBatch`es."""

    stops: Tensor
    """Lists the times at which its trajectories stop, from noise to 0."""
