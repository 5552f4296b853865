"""What learns in a consistency run: every weight of a copy of the teacher, or adapters on the teacher itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.diffusion.prediction import Cond, Network, Prediction
from fewstep.models.export import save_lora, save_student
from fewstep.models.latent_model import LatentModel
from fewstep.models.lora.adapters import TARGET_MODULES, AdaptedNetwork
from fewstep.models.network import UNetNetwork, student_of, weights_sha256
from fewstep.models.pipeline import Pipeline
from fewstep.parallel.world import current_world
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.train.learner import Distribution, Learner, replicated, shard, whole
from fewstep.train.loop import computes_in_bf16
from fewstep.train.state import gathered, is_spread


class Student(Protocol):
    """Built from a base; knows what its run exports."""

    learner: Learner
    base: Network
    """The base as it was: the teacher of a distillation."""

    def pipeline(self) -> AbstractContextManager[Pipeline]:
        """Paints with the weights that would be exported now."""
        ...

    def save(self, folder: Path) -> None: ...


class WholeStudent:
    """Every weight learns."""

    def __init__(
        self, network: UNetNetwork, model: LatentModel, *, ema: bool, checkpointing: bool, details: Mapping[str, Any],
        distribution: Distribution = "ddp",
    ) -> None:  # fmt: skip
        """`model` gives all but the network; `details` as `save_student` wants them."""
        self.base: Network = model.network
        if checkpointing:
            network.unet.enable_gradient_checkpointing()
        self.learner = whole(network, ema=ema)
        if current_world().size > 1:
            self.learner = _spread(self.learner, distribution)
        self._model, self._details = model, details
        self._pipeline = Pipeline(_as_student(model, details, self._exported))

    @property
    def _exported(self) -> UNetNetwork:
        network = self.learner.averaged or self.learner.weights
        assert isinstance(network, UNetNetwork)
        return network

    def pipeline(self) -> AbstractContextManager[Pipeline]:
        return contextlib.nullcontext(self._pipeline)

    def save(self, folder: Path) -> None:
        network = _gathered(self._exported)
        if current_world().main:
            save_student(folder, self._model, network, self._details["grid_size"], self._details)
        current_world().wait()


class LoraStudent:
    """Adapters learn; the base serves teacher and student alike, so that there is one copy of it in memory."""

    def __init__(
        self, model: LatentModel, *, ema: bool, checkpointing: bool = False, details: Mapping[str, Any],
        frozen: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """`details` as `save_lora` wants them; the base is stored in `frozen`."""
        self._adapted = AdaptedNetwork(
            model.network, details["lora_rank"], details["lora_alpha"], TARGET_MODULES, frozen, details["seed"]
        )
        self._average = self._adapted.copy_of_weights() if ema else None
        if checkpointing:
            model.network.unet.enable_gradient_checkpointing()
        self.base: Network = self._adapted.teacher
        self.learner = Learner(
            weights=self._adapted.weights, student=self._adapted.student, averaged=self._average,
            target=self._averaged if ema else None,
        )  # fmt: skip
        if current_world().size > 1:
            self.learner = replicated(self.learner)
        self._model, self._details = model, details

    @functools.cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline(_as_student(self._model, self._details, self._model.network))

    def _averaged(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        with self._exported():
            return self._adapted.student(z_t, t, cond, omega)

    @contextlib.contextmanager
    def _exported(self) -> Iterator[None]:
        with self._adapted.using(self._average) if self._average is not None else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def pipeline(self) -> Iterator[Pipeline]:
        with self._exported():
            yield self._pipeline

    def save(self, folder: Path) -> None:
        pairs = self._adapted.pairs(self._average or self._adapted.weights)
        if current_world().main:
            difference = save_lora(folder, self._model, pairs, self._details)
            print(f"LoRA written in two spellings and read back: largest difference {difference:g}", flush=True)
        current_world().wait()


def _spread(learner: Learner, distribution: Distribution) -> Learner:
    """Over the processes of this run."""
    if distribution == "ddp":
        return replicated(learner)
    for network in filter(None, (learner.weights, learner.averaged)):
        assert isinstance(network, UNetNetwork)
        unet = network.unet
        shard(unet, [*unet.down_blocks, unet.mid_block, *unet.up_blocks])
    return learner


def _gathered(network: UNetNetwork) -> UNetNetwork:
    """The same with whole weights, where processes hold a part each."""
    if not is_spread(network):
        return network
    state = {name: gathered(value) for name, value in network.unet.state_dict().items()}
    copy = type(network.unet).from_config(network.unet.config)
    copy.load_state_dict(state)
    return UNetNetwork(copy, network.schedule, network.parameterisation, network.pixels_per_latent)


class _Frozen(Protocol):
    @property
    def precision(self) -> str: ...

    @property
    def frozen_precision(self) -> str: ...


def frozen_dtype(config: _Frozen, device: torch.device) -> torch.dtype:
    """What weights that do not learn are stored in."""
    if config.frozen_precision == "auto":
        return torch.bfloat16 if computes_in_bf16(device, config.precision) else torch.float32
    return torch.bfloat16 if config.frozen_precision == "bf16" else torch.float32


def takes_guidance(model: LatentModel) -> bool:
    """Whether it is a few-step model already."""
    return model.network.unet.config.time_cond_proj_dim is not None


def build_student(
    config: ConsistencyConfig, model: LatentModel, resolution: int, made_by: Mapping[str, Any]
) -> Student:
    """Adapters on `model`, `model` itself where it is few-step already, or a few-step copy of it.

    `made_by` has the `method`, the `teacher` and the `solver` that are recorded beside the weights.
    """
    frozen = frozen_dtype(config, model.device)
    settings: Any = {
        "ema": config.ema_decay > 0, "checkpointing": config.gradient_checkpointing,
        "details": {**_details(config, model), **made_by},
    }  # fmt: skip
    if config.lora_rank:
        return LoraStudent(model, **settings, frozen=frozen)
    if takes_guidance(model):
        return WholeStudent(model.network.requires_grad_(True), model, **settings, distribution=config.distribution)
    network = student_of(model.network, resolution // model.pixels_per_latent)
    model.network.unet.to(frozen)
    return WholeStudent(network, model, **settings, distribution=config.distribution)


def _details(config: ConsistencyConfig, model: LatentModel) -> dict[str, Any]:
    """What is recorded beside the weights."""
    names = ("data", "steps", "batch_size", "lr", "ema_decay", "skip", "shrink", "guidance_scale", "seed")
    adapters = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or float(config.lora_rank)}
    return {
        "name": config.out.resolve().name,
        **{name: getattr(config, name) for name in names},
        "guidance_range": list(config.guidance_range),
        "grid_size": model.schedule.grid_size(config.skip),
        "teacher_sha256": weights_sha256(model.network.unet),
        **({"base_config": config.base_config} if config.base_config else {}),
        **(adapters if config.lora_rank else {}),
    }


def _as_student(model: LatentModel, details: Mapping[str, Any], network: UNetNetwork) -> LatentModel:
    """As it would be loaded from disk."""
    scheduler = {**model.scheduler_config, "original_inference_steps": details["grid_size"]}
    return dataclasses.replace(model, network=network, scheduler_config=scheduler, details=dict(details))
