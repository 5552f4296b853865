"""What learns: weights, their average, the networks that answer with each, spread over the processes of a run; and what
a run knows of it, be it every weight of a few-step network or adapters on the base itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fewstep.diffusion.prediction import Network
from fewstep.method.step import TargetName
from fewstep.models.card import StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork
from fewstep.train.config import Optimisation
from fewstep.train.role import STUDENT, Role


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The weights that learn, their moving averages, and the networks that answer with each."""

    weights: nn.Module
    student: Network
    averaged: nn.Module | None = None
    """The average that is exported."""
    target: Network | None = None
    """Answers with `target_average`, or with `averaged`; None: the student is its own target, without gradient."""
    target_average: nn.Module | None = None
    """A second average, where the target's has a decay of its own."""
    target_decay: float = 0.0
    """Is the decay of `target_average`."""
    student_without_exchange: Network | None = None
    """`student` as it answers where no gradient is exchanged, if that is another."""

    @property
    def target_network(self) -> Network:
        """Returns what the student is compared with: `target`, or the student itself."""
        return self.target or self.student_without_gradient

    @property
    def student_without_gradient(self) -> Network:
        """Returns the student as it answers where no gradient is exchanged."""
        return self.student_without_exchange or self.student

    def as_role(self, name: str = STUDENT, optimisation: Optimisation | None = None, every: int = 1) -> Role:
        """Returns what the loop trains of it."""
        return Role(
            name=name, weights=self.weights, network=self.student, average=self.averaged, optimisation=optimisation,
            every=every, target=self.target_average, target_decay=self.target_decay,
        )  # fmt: skip


TARGETS: dict[TargetName, Callable[[Learner], Network | None]] = {
    "average": lambda learner: learner.target_network,
    "itself": lambda learner: learner.student_without_gradient,
    "none": lambda _learner: None,
}
"""Who answers at s, by name: the student's moving average where it keeps one; the student itself; or nobody, where the
path ends at the end itself."""


def learn_every_weight(
    network: nn.Module, *, ema: bool, target_decay: float | None = None,
    copied: Callable[[Any], nn.Module] = copy.deepcopy,
) -> Learner:  # fmt: skip
    """Returns the learner of a whole `network` (a Network); with `target_decay` its target is a second average. Either
    average begins as it is `copied`."""
    averaged = copied(network).requires_grad_(False) if ema else None
    if target_decay is None:
        return Learner(weights=network, student=network, averaged=averaged, target=averaged)
    target = copied(network).requires_grad_(False)
    return Learner(
        weights=network, student=network, averaged=averaged, target=target, target_average=target,
        target_decay=target_decay,
    )  # fmt: skip


class _AsModule(nn.Module):
    """Makes a network a module that holds the weights which learn, and no others: so DDP sees them alone."""

    def __init__(self, weights: nn.Module, network: Callable[..., Any]) -> None:
        super().__init__()
        self.weights = weights
        self._network = (network,)  # in a tuple: no submodule

    def forward(self, *arguments: Any) -> Any:
        return self._network[0](*arguments)


def replicate(learner: Learner, *, some_unused: bool = False) -> Learner:
    """Returns the learner whole in every process: gradients are summed while the backward pass goes on (DDP).

    `some_unused` says that some weights have no gradient, which is not waited for then.
    """
    network = replicate_module(learner.weights, learner.student, some_unused=some_unused)
    return dataclasses.replace(learner, student=network, student_without_exchange=learner.student)


def replicate_module(
    weights: nn.Module, network: Callable[..., Any], *, some_unused: bool = False
) -> DistributedDataParallel:  # fmt: skip
    """Returns a network that exchanges the gradients of `weights`, which it answers with."""
    replicated = DistributedDataParallel(
        _AsModule(weights, network), broadcast_buffers=False, gradient_as_bucket_view=True,
        find_unused_parameters=some_unused,
    )  # fmt: skip
    # DDP itself divides by the number of processes. The loss is a share of the whole batch's, so a sum is right.
    replicated.register_comm_hook(None, _sum)
    return replicated


def _sum(_, bucket):  # type: ignore[no-untyped-def]  # DDP takes no annotation that is a string
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class Trainable(Protocol):
    """What learns in a run, on its base, and knows what the run exports."""

    learner: Learner
    base: Network
    """The base as it was: the teacher of a distillation."""
    model: LatentModel
    """The base, with all that a student takes from it."""
    frozen: torch.dtype
    """What the base is stored in."""
    card: StudentCard
    """What is recorded beside the weights."""

    @property
    def is_spread(self) -> bool:
        """Tells whether every process holds a part of the network that paints, so that all must paint together."""
        ...

    def base_alone(self) -> AbstractContextManager[None]:
        """Lets the base's own network answer as `base` does, while it lasts."""

    def freeze_copy(self) -> Network:
        """Returns the student as it is now, which stays so: a copy of what learns, and of nothing else."""
        ...

    def exported(self) -> AbstractContextManager[LatentModel]:
        """Gives the student, while it lasts, with the weights that would be exported now."""
        ...

    def save(self, folder: Path) -> None:
        """Exports the weights of now, once for all processes."""
        ...

    def reload(self, folder: Path) -> None:
        """Loads into main memory what `save` wrote. Raises UserError where it cannot be."""
        ...


def as_student(model: LatentModel, card: StudentCard, network: BackboneNetwork) -> LatentModel:
    """Returns the student as it would be loaded from disk."""
    scheduler = {**model.scheduler_config, "original_inference_steps": card.grid_size}
    return dataclasses.replace(model, network=network, scheduler_config=scheduler, card=card)
