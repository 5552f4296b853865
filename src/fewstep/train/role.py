"""A role: weights that learn together, by a loss, an optimiser and a rhythm of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fewstep.train.config import Optimisation

STUDENT = "student"
"""Is the name of every task's first role."""
_RESERVED = ("averaged", "target", "optimizer", "losses")  # what the student's tensors are called in a checkpoint


@dataclass(frozen=True, kw_only=True)
class Role:
    """Part of a task: a student, the heads that judge it, a second adapter as fake score. No two share a weight."""

    name: str = STUDENT
    weights: nn.Module
    """Learn where they require gradient."""
    network: Callable[..., Any] | None = None
    """Answers with `weights`, where that is not `weights` itself: DDP's module where processes exchange gradients,
    which the role's own loss asks once for each part of a batch."""
    average: nn.Module | None = None
    """Is a copy of `weights` that the loop keeps as their moving average."""
    target: nn.Module | None = None
    """Is a second one, for what the role is compared with, where that has a decay of its own."""
    target_decay: float = 0.0
    """Is the decay of `target`."""
    optimisation: Optimisation | None = None
    """None takes the run's own."""
    make_optimizer: Callable[[nn.Module, Optimisation], Optimizer] | None = None
    """None makes the one that `optimisation` names."""
    every: int = 1
    """The role learns at updates k, 2k, 3k, …"""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every of role {self.name} is {self.every}; it must be at least 1")
        if not self.name.isidentifier() or self.name in _RESERVED:
            raise ValueError(f"a role cannot be called {self.name!r}; expected a word, and none of {_RESERVED}")

    def is_due(self, step: int) -> bool:
        """Returns whether it learns at the update after `step` of them."""
        return (step + 1) % self.every == 0

    def without_exchange(self) -> AbstractContextManager[None]:
        """Lets processes keep their gradients to themselves, while it lasts."""
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return _without_scatter(self.weights)


@contextlib.contextmanager
def _without_scatter(weights: nn.Module) -> Iterator[None]:
    parts = [part for part in weights.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_requires_gradient_sync(True, recurse=False)
