"""Examples as the network sees them, at the positions of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fewstep.diffusion.prediction import Cond


@dataclass(frozen=True)
class LatentBatch:
    """z_0 `[b, c, h, w]`, its conditions, and which of them are `valid` `[b]` (bool)."""

    z_0: Tensor
    cond: Cond
    valid: Tensor
    """False for a picture that could not be read: z_0 then stands for nothing, and must weigh nothing."""


@dataclass(frozen=True)
class DroppedPicture:
    """A picture that a run could not read: at which position, which, and why."""

    counter: int
    key: str
    reason: str


class LatentSource(Protocol):
    """A pure function of the position, but for the account of what could not be read."""

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    def batch(self, counters: range, noise: Tensor) -> LatentBatch:
        """What stands at these positions; `noise`, shaped like z_0, draws from the autoencoder's posterior."""
        ...

    def keys(self, counters: range) -> Sequence[str]:
        """Names of the pictures there."""
        ...

    def dropped(self) -> list[DroppedPicture]:
        """What could not be read since this was last asked."""
        ...
