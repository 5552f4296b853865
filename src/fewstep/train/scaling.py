"""Loss scaling for fp16, whose smallest numbers are larger than many gradients (arXiv 1710.03740, 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FIRST = 2.0**16
GROWS_AFTER = 2000
"""Updates without an overflow after which the scale doubles, as torch's GradScaler has it."""


class LossScale:
    """The power of two that losses are multiplied by before their gradient is taken, and gradients divided by after.

    It halves where a gradient overflows, and that update is left out. It is decided on the device from sums over all
    processes, so that all have the same and the host need not wait.
    """

    def __init__(self, device: torch.device, scale: float, good: int = 0) -> None:
        """`scale` is FIRST, or with `good` what `numbers` gave."""
        self.scale = torch.tensor(scale, device=device)
        self._good = torch.tensor(float(good), device=device)

    def explains(self, losses: Tensor, norms: Tensor) -> Tensor:
        """Returns 1 where gradients of these norms overflowed by the scale alone: the losses are finite, and a smaller
        scale can be had; else 0."""
        overflow = torch.isfinite(losses).all() & ~torch.isfinite(norms).all()
        return (overflow & (self.scale > 1)).float()

    def follow(self, overflow: Tensor, vetoed: Tensor) -> None:
        """Halves the scale after an overflow (1, not 0), and doubles it after enough updates that were done."""
        self._good = (self._good + 1 - vetoed) * (1 - overflow)
        grows = (self._good >= GROWS_AFTER).float()
        self._good = self._good * (1 - grows)
        self.scale = self.scale * (1 - 0.5 * overflow) * (1 + grows)

    def numbers(self) -> dict[str, Any]:
        """Returns its state, as JSON holds it; waits for the device."""
        return {"loss_scale": float(self.scale), "updates_at_loss_scale": int(self._good)}
