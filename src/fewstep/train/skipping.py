"""Updates whose loss or gradient is not finite: left out by all processes alike, and no more than a few of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
