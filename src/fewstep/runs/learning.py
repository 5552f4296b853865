"""What learns in a run, as its configuration says."""

from __future__ import annotations

import torch

from fewstep.models.card import StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.hashes import weights_sha256
from fewstep.precision import Precision, choose_dtype
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.runs.material import choose_resolution
from fewstep.train.trainable import LoraWeights, Trainable, WholeWeights


def make_trainable(
    config: ConsistencyConfig, model: LatentModel, *, method: str, teacher: str, solver: str,
    guided_from: int | None = None,
) -> Trainable:  # fmt: skip
    """Makes adapters on `model`, `model` itself where it is few-step already, or a few-step copy of it.

    `method`, `teacher`, `solver` and `guided_from` are recorded beside the weights.
    """
    adapters = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or float(config.lora_rank)}
    card = StudentCard(
        name=config.out.resolve().name, data=config.data, steps=config.steps, batch_size=config.batch_size,
        lr=config.lr, ema_decay=config.ema_decay, skip=config.skip, shrink=config.shrink, seed=config.seed,
        guidance_scale=config.guidance_scale, guidance_range=config.guidance_range,
        grid_size=model.schedule.grid_size(config.skip), teacher_sha256=weights_sha256(model.network.backbone),
        base_config=config.base_config or None, **config.stated(),
        method=method, teacher=teacher, solver=solver, guided_from=guided_from,
        **(adapters if config.lora_rank else {}),  # type: ignore[arg-type]  # one of them is a whole number
    )  # fmt: skip
    frozen = choose_frozen_dtype(config.frozen_precision, config.precision, model.device)
    ema, checkpointing = config.ema_decay > 0, config.gradient_checkpointing
    if config.lora_rank:
        return LoraWeights(model, card, ema=ema, checkpointing=checkpointing, frozen=frozen)
    if model.network.takes_omega:
        network = model.network.requires_grad_(True)
    else:
        network = model.network.to_student(choose_resolution(config, model) // model.codec.multiple)
        model.network.backbone.to(frozen)
    return WholeWeights(
        network, model, card, ema=ema, checkpointing=checkpointing, distribution=config.distribution
    )  # fmt: skip


def choose_frozen_dtype(frozen: Precision, computing: Precision, device: torch.device) -> torch.dtype:
    """Returns what weights that do not learn are stored in; `auto` is what networks compute in."""
    return choose_dtype(computing if frozen == "auto" else frozen, device)
