"""What leaves an update out, in all processes alike: a loss or gradient that is not finite, of which there may be few;
and one that overflowed fp16, whose smallest numbers are larger than many gradients, so that losses are scaled (arXiv
1710.03740, 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IN_A_ROW = 3
"""Is the number of broken updates, one after another, that ends a run."""
SHARE = 0.001
"""Is the share of all its updates that ends it too, if they are not fewer than IN_A_ROW."""


class Skipping:
    """Decides on the device, so that the host need not wait for it.

    Once a run has ended so, nothing moves any more: what the host finds, however late it looks, is the state before
    the last broken update.
    """

    def __init__(self, steps: int, device: torch.device, in_a_row: int = 0, total: int = 0) -> None:
        """`in_a_row` and `total` are as `counts` gave them."""
        self._most = max(IN_A_ROW, math.ceil(SHARE * steps))
        self._in_a_row = torch.tensor(float(in_a_row), device=device)
        self._total = torch.tensor(float(total), device=device)

    def veto(self, losses: Tensor, norms: Tensor, valid: Tensor) -> Tensor:
        """Returns 1 if an update must be left out, else 0; its roles have these losses, gradient norms and numbers of
        valid samples `[roles]`. One where a role has no sample is left out too, but does not count as broken."""
        broken = (~(torch.isfinite(losses) & torch.isfinite(norms)) & (valid > 0)).any().float()
        halted = self._halted.float()
        self._in_a_row = torch.where(halted > 0, self._in_a_row, (self._in_a_row + 1) * broken)
        self._total = self._total + broken * (1 - halted)
        return torch.maximum(torch.maximum(broken, halted), (valid == 0).any().float())

    @property
    def _halted(self) -> Tensor:
        return (self._in_a_row >= IN_A_ROW) | (self._total >= self._most)

    def halted(self) -> bool:
        """Returns whether the run has to end; waits for the device."""
        return bool(self._halted)

    def ends_with(self, steps: Sequence[int]) -> bool:
        """Returns whether a run of which these updates were left out has ended with the last of them."""
        last = list(steps[-IN_A_ROW:])
        in_a_row = len(last) == IN_A_ROW and last[-1] - last[0] == IN_A_ROW - 1
        return in_a_row or len(steps) >= self._most

    def counts(self) -> tuple[int, int]:
        """Returns the broken updates in a row until now, and in all; waits for the device."""
        return int(self._in_a_row), int(self._total)


FIRST_SCALE = 2.0**16
GROWS_AFTER = 2000
"""Updates without an overflow after which the scale doubles, as torch's GradScaler has it."""


class LossScale:
    """The power of two that losses are multiplied by before their gradient is taken, and gradients divided by after.

    It halves where a gradient overflows, and that update is left out. It is decided on the device from sums over all
    processes, so that all have the same and the host need not wait.
    """

    def __init__(self, device: torch.device, scale: float, good: int = 0) -> None:
        """`scale` is FIRST_SCALE, or with `good` what `numbers` gave."""
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
