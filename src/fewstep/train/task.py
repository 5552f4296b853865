"""What the training loop wants of whatever is trained, and what tasks on latents share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fewstep.data import draws
from fewstep.data.latents import DroppedPicture, LatentSource
from fewstep.train.learner import Learner
from fewstep.train.role import STUDENT, Role


class Loss(NamedTuple):
    """What some samples cost."""

    total: Tensor
    """The sum of the losses of those that are valid; scalar."""
    valid: Tensor
    """How many are; scalar."""

    @classmethod
    def from_mean(cls, mean: Tensor, counters: range) -> Self:
        """Makes it from the mean over samples that are all valid."""
        return cls(mean * len(counters), torch.tensor(float(len(counters)), device=mean.device))

    @classmethod
    def of_valid(cls, losses: Tensor, valid: Tensor) -> Self:
        """Makes it from the loss of every sample `[b]` and whether it counts `[b]`."""
        return cls(torch.where(valid, losses, 0).sum(), valid.sum())


class Task(ABC):
    """What is trained, and on what."""

    @property
    @abstractmethod
    def roles(self) -> Sequence[Role]:
        """Returns what learns, the student first; one of them at least learns at every update."""

    @abstractmethod
    def losses(self, counters: range, due: Collection[str]) -> Iterator[tuple[str, Loss]]:
        """Yields the name and the loss of every role in `due`, in the order of `roles`, on the samples at these
        counters: pure functions of counters and weights.

        The loop takes the gradient of a loss before it asks for the next, and until then no weights of other roles
        require gradient. So what two roles need is computed once and stands in a local variable; the second detaches
        it, since its graph is gone.
        """

    def keys(self, counters: range) -> Sequence[str]:
        """Returns what the samples there are called."""
        return [str(i) for i in counters]

    def dropped(self) -> list[DroppedPicture]:
        """Returns the samples that could not be read, since this was last asked."""
        return []


class StudentTask(Task):
    """A task whose only role is the student."""

    student: Any
    """A module that holds the weights which learn."""
    averaged: Any
    """A copy of `student` that the loop keeps as its moving average, or None."""

    @property
    def roles(self) -> Sequence[Role]:
        return (Role(weights=self.student, average=self.averaged),)

    @abstractmethod
    def loss(self, counters: range) -> Loss:
        """Returns the student's: a pure function of counters and weights."""

    def losses(self, counters: range, due: Collection[str]) -> Iterator[tuple[str, Loss]]:  # noqa: ARG002  # always due
        yield STUDENT, self.loss(counters)


class LatentTask(Task):
    """Trains a learner on a source, whose names and losses these are; its noise is drawn by position."""

    asks_teacher: bool = True
    """Whether an update asks the teacher, who else can be let go."""

    def __init__(self, learner: Learner, source: LatentSource, seed: int) -> None:
        self.student, self.averaged = learner.weights, learner.averaged
        self._learner, self._source, self._seed = learner, source, seed
        self._device = next(learner.weights.parameters()).device

    @property
    def roles(self) -> Sequence[Role]:
        return (self._learner.as_role(),)

    def keys(self, counters: range) -> Sequence[str]:
        return self._source.keys(counters)

    def dropped(self) -> list[DroppedPicture]:
        return self._source.dropped()

    def _normal(self, stream: str, counters: range, shape: Sequence[int]) -> Tensor:
        return draws.normal(self._seed, stream, counters, shape).to(self._device, non_blocking=True)
