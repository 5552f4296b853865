"""What learns: every weight of a few-step network, or adapters on the base itself."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, assert_never

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network, Prediction
from fewstep.models.card import LORA_FILE, StudentCard, read_method
from fewstep.models.export import save_lora, save_student
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import AdaptedNetwork, AdapterWeights
from fewstep.models.lora.file import LoraFile, list_written, read_lora
from fewstep.models.network import BackboneNetwork
from fewstep.parallel.world import current_world
from fewstep.train.learner import Distribution, Learner, learn_every_weight, replicate, shard
from fewstep.train.state import gather_tensor, is_spread


class Trainable(Protocol):
    """What learns in a run, on its base, and knows what the run exports."""

    learner: Learner
    base: Network
    """The base as it was: the teacher of a distillation."""
    card: StudentCard
    """What is recorded beside the weights."""

    def add_fake(self, rank: int) -> Learner:
        """Hangs adapters of that rank on the base, whose answers with them are a fake score's."""
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
        self.learner = learn_every_weight(network, ema=ema, target_decay=target_decay)
        if current_world().size > 1:
            self.learner = _spread(self.learner, distribution)
        self._model, self.card = model, card

    def add_fake(self, rank: int) -> Learner:
        base = self._model.network
        fake = _hang_fake(self._model, rank, base.backbone.dtype, self.card)
        self.base = fake.teacher
        return _learn_adapters(fake)

    def base_alone(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def freeze_copy(self) -> BackboneNetwork:
        network = copy.deepcopy(_with_whole_weights(self._network)).requires_grad_(False)
        network.backbone.to(self._model.device, self._model.network.backbone.dtype)
        return network

    @property
    def _network(self) -> BackboneNetwork:
        network = self.learner.averaged or self.learner.weights
        assert isinstance(network, BackboneNetwork)
        return network

    @contextlib.contextmanager
    def exported(self) -> Iterator[LatentModel]:
        with self._model.awake():
            yield _as_student(self._model, self.card, self._network)

    def save(self, folder: Path) -> None:
        network = _with_whole_weights(self._network)
        if current_world().main:
            save_student(folder, self._model, network, self.card)
        current_world().wait()

    def reload(self, folder: Path) -> None:
        load_latent_model(folder, torch.device("cpu"))


class LoraWeights:
    """Adapters learn; the base serves teacher and student alike, so that there is one copy of it in memory."""

    def __init__(
        self, model: LatentModel, card: StudentCard, *, ema: bool, target_decay: float | None = None,
        checkpointing: bool = False, frozen: torch.dtype = torch.float32, start: LoraFile | None = None,
    ) -> None:  # fmt: skip
        """Hangs adapters on `model`, whose base is stored in `frozen`, and which are those of `start` if there are any;
        with an input for the end where its method tells it. `card` is as `save_lora` wants it."""
        assert card.lora_rank is not None
        assert card.lora_alpha is not None
        assert card.seed is not None
        if read_method(card, model.source).told_end and not model.network.takes_end:
            model.network.hang_end()
        self._adapted = AdaptedNetwork(
            model.network, card.lora_rank, card.lora_alpha, model.family.lora.targets, frozen, card.seed
        )
        if start is not None:
            self._adapted.take_over(start.pairs, "the LoRA to start from", start.end)
        self._average = self._adapted.copy_of_weights() if ema else None
        self._target = self._average if target_decay is None else self._adapted.copy_of_weights()
        if checkpointing:
            model.network.backbone.enable_gradient_checkpointing()
        self.base: Network = self._adapted.teacher
        self.learner = Learner(
            weights=self._adapted.weights, student=self._adapted.student, averaged=self._average,
            target=self._answer_as_target if self._target is not None else None,
            target_average=None if target_decay is None else self._target, target_decay=target_decay or 0.0,
        )  # fmt: skip
        if current_world().size > 1:
            self.learner = replicate(self.learner)
        self._model, self.card, self._frozen = model, card, frozen

    def add_fake(self, rank: int) -> Learner:
        return _learn_adapters(_hang_fake(self._model, rank, self._frozen, self.card))

    def base_alone(self) -> AbstractContextManager[None]:
        return self._adapted.alone()

    def freeze_copy(self) -> Network:
        rank, alpha = self._adapted.rank, self._adapted.alpha
        targets = self._model.family.lora.targets
        last = AdaptedNetwork(self._model.network, rank, alpha, targets, self._frozen, name="last")
        last.take_over(self._adapted.pairs(self._adapted.weights), "the student")
        last.weights.requires_grad_(False)
        return last.student

    def _answer_as_target(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        with self._using(self._target):
            return self._adapted.student(z_t, t, cond, omega)

    def _using(self, average: AdapterWeights | None) -> AbstractContextManager[None]:
        return contextlib.nullcontext() if average is None else self._adapted.using(average)

    @contextlib.contextmanager
    def exported(self) -> Iterator[LatentModel]:
        with self._adapted.acting(), self._using(self._average), self._model.awake():
            yield _as_student(self._model, self.card, self._model.network)

    def save(self, folder: Path) -> None:
        exported = self._average or self._adapted.weights
        pairs, end = self._adapted.pairs(exported), self._adapted.end(exported)
        if current_world().main:
            difference = save_lora(folder, self._model, pairs, self.card, end)
            spelt = "in two spellings" if len(list_written(self._model.family.lora, end)) > 1 else "for diffusers"
            if end:
                spelt = "without kohya's spelling, whose readers have no place for the end,"
            print(f"LoRA written {spelt} and read back: largest difference {difference:g}", flush=True)
        current_world().wait()

    def reload(self, folder: Path) -> None:
        read_lora(folder / LORA_FILE, self._model.parts, self._model.family.lora)


def _hang_fake(model: LatentModel, rank: int, frozen: torch.dtype, card: StudentCard) -> AdaptedNetwork:
    assert card.seed is not None
    return AdaptedNetwork(model.network, rank, float(rank), model.family.lora.targets, frozen, card.seed, name="fake")


def _learn_adapters(adapted: AdaptedNetwork) -> Learner:
    learner = Learner(weights=adapted.weights, student=adapted.student)
    return replicate(learner) if current_world().size > 1 else learner


def _spread(learner: Learner, distribution: Distribution) -> Learner:
    """Spreads what learns over the processes of this run."""
    match distribution:
        case "ddp":
            return replicate(learner)
        case "fsdp":
            for network in filter(None, (learner.weights, learner.averaged, learner.target_average)):
                assert isinstance(network, BackboneNetwork)
                shard(network.backbone, network.blocks)
            return learner
        case _:
            assert_never(distribution)


def _with_whole_weights(network: BackboneNetwork) -> BackboneNetwork:
    """Returns the same with whole weights, where processes hold a part each."""
    if not is_spread(network):
        return network
    state = {name: gather_tensor(value) for name, value in network.backbone.state_dict().items()}
    whole = type(network.backbone).from_config(network.backbone.config)
    whole.load_state_dict(state)
    return network.with_backbone(whole)


def _as_student(model: LatentModel, card: StudentCard, network: BackboneNetwork) -> LatentModel:
    """Returns the student as it would be loaded from disk."""
    scheduler = {**model.scheduler_config, "original_inference_steps": card.grid_size}
    return dataclasses.replace(model, network=network, scheduler_config=scheduler, card=card)
