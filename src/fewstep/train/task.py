"""What the training loop wants of whatever is trained."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.data.latents import DroppedPicture


class Loss(NamedTuple):
    """Of some samples."""

    total: Tensor
    """The sum of the losses of those that are valid; scalar."""
    valid: Tensor
    """How many are; scalar."""


def of_mean(mean: Tensor, counters: range) -> Loss:
    """Where all samples are valid."""
    return Loss(mean * len(counters), torch.tensor(float(len(counters)), device=mean.device))


class Task(ABC):
    """What is trained, and on what."""

    student: Any
    """A module that holds the weights which learn."""
    averaged: Any
    """A copy of `student` that the loop keeps as its moving average, or None."""

    @abstractmethod
    def loss(self, counters: range) -> Loss:
        """Of the samples at these counters: a pure function of counters and weights."""

    def keys(self, counters: range) -> Sequence[str]:
        """What the samples there are called."""
        return [str(i) for i in counters]

    def dropped(self) -> list[DroppedPicture]:
        """Samples that could not be read, since this was last asked."""
        return []

    def without_exchange(self) -> AbstractContextManager[None]:
        """While it lasts, processes keep their gradients to themselves: for all parts of a batch but the last."""
        return contextlib.nullcontext()
