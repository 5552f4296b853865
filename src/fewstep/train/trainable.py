"""What learns in a run: every weight of a few-step network, or adapters on the base itself."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from fewstep.diffusion.prediction import Network
from fewstep.models.card import StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.network import BackboneNetwork
from fewstep.train.learner import Learner


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
