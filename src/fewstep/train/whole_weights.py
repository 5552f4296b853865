"""A few-step network of which every weight learns, beside a base that stays as it is."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import assert_never

import torch

from fewstep.diffusion.prediction import Network
from fewstep.models.card import StudentCard
from fewstep.models.export import save_student
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.network import BackboneNetwork
from fewstep.models.spreading import copy_spread, save_spread
from fewstep.parallel.world import Distribution, current_world, is_spread, make_mesh, shard
from fewstep.train.learner import Learner, as_student, learn_every_weight, replicate


class WholeWeights:
    """Every weight learns."""

    def __init__(
        self, network: BackboneNetwork, model: LatentModel, card: StudentCard, *, ema: bool,
        target_decay: float | None = None, checkpointing: bool = False, distribution: Distribution = "ddp",
    ) -> None:  # fmt: skip
        """Takes all but the network from `model`; `card` is as `save_student` wants it."""
        self.base: Network = model.network
        if checkpointing:
            network.backbone.enable_gradient_checkpointing()
        if is_spread(network):
            self.learner = learn_every_weight(network, ema=ema, target_decay=target_decay, copied=copy_spread)
        else:
            self.learner = learn_every_weight(network, ema=ema, target_decay=target_decay)
            if current_world().size > 1:
                self.learner = _spread(self.learner, distribution)
        self.model, self.card, self.frozen = model, card, model.network.backbone.dtype

    @property
    def is_spread(self) -> bool:
        return is_spread(self.learner.weights)

    def base_alone(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def freeze_copy(self) -> BackboneNetwork:
        copied = copy_spread if self.is_spread else copy.deepcopy
        network = copied(self._network).requires_grad_(False)
        network.backbone.to(self.model.device, self.model.network.backbone.dtype)
        return network

    @property
    def _network(self) -> BackboneNetwork:
        network = self.learner.averaged or self.learner.weights
        assert isinstance(network, BackboneNetwork)
        return network

    @contextlib.contextmanager
    def exported(self) -> Iterator[LatentModel]:
        with self.model.awake():
            yield as_student(self.model, self.card, self._network)

    def save(self, folder: Path) -> None:
        def write(network: BackboneNetwork) -> None:
            save_student(folder, self.model, network, self.card)

        if self.is_spread:
            save_spread(self._network, write)
        elif current_world().main:
            write(self._network)
        current_world().wait()

    def reload(self, folder: Path) -> None:
        load_latent_model(folder, torch.device("cpu"))


def _spread(learner: Learner, distribution: Distribution) -> Learner:
    """Spreads what learns over the processes of this run."""
    match distribution:
        case "ddp":
            assert isinstance(learner.weights, BackboneNetwork)
            return replicate(learner, some_unused=learner.weights.leaves_some_unused)
        case "fsdp" | "hybrid":
            mesh = make_mesh(distribution)
            for network in filter(None, (learner.weights, learner.averaged, learner.target_average)):
                assert isinstance(network, BackboneNetwork)
                shard(network.backbone, network.blocks, mesh)
            return learner
        case _:
            assert_never(distribution)
