"""What learns in a run, as its configuration says."""

from __future__ import annotations

import dataclasses
import importlib
from typing import TYPE_CHECKING, Any

import torch

from fewstep.errors import UserError
from fewstep.method.named import METHODS
from fewstep.models.card import StudentCard
from fewstep.models.family import Family, LatentModel
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.models.model_files import name_place
from fewstep.models.network import hash_weights
from fewstep.parallel.world import current_world, make_mesh
from fewstep.precision import FrozenPrecision, Precision, choose_dtype
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.recipes.distill import Distill
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import choose_resolution
from fewstep.train.learner import Trainable

if TYPE_CHECKING:
    from fewstep.models.recognising import Recognised
    from fewstep.runs.begun import Begun

_KINDS = {"whole": "fewstep.train.whole_weights", "lora": "fewstep.train.lora_weights"}
"""Modules of the kinds of what learns; only that of the kind that a run trains is imported."""


def make_trainable(
    config: ConsistencyConfig, model: LatentModel, *, method: str, teacher: str, solver: str,
    guided_from: int | None = None, begun: Begun | None = None,
) -> Trainable:  # fmt: skip
    """Makes adapters on `model`, `model` itself where it is few-step already, or a few-step copy of it; or what goes on
    from a student that has `begun`.

    `method`, `teacher`, `solver` and `guided_from` are recorded beside the weights.
    """
    phases, resolution = choose_phases(config, model, begun), choose_resolution(config, model)
    consistency, refined_by = config.method, None
    if begun is not None and config.method != (was := begun.card.consistency or "lcm"):
        consistency, refined_by = was, config.method
    adapters = {"lora_rank": config.lora_rank, "lora_alpha": config.lora_alpha or float(config.lora_rank)}
    card = StudentCard(
        name=config.out.resolve().name, data=config.data, steps=config.steps, batch_size=config.batch_size,
        lr=config.lr, ema_decay=config.ema_decay, target_decay=config.second_decay, skip=config.skip,
        shrink=config.shrink, seed=config.seed, guidance_scale=config.guidance_scale,
        guidance_range=config.guidance_range, grid_size=model.schedule.grid_size(config.skip),
        resolution=None if model.network.says_side else resolution,
        teacher_sha256=hash_weights(model.network.backbone), base_config=config.base_config or None,
        **config.stated(),
        method=method, teacher=name_place(teacher), solver=solver, guided_from=guided_from,
        consistency=None if consistency == "lcm" else consistency, refined_by=refined_by,
        phases=phases or None,
        sampling_steps=phases[0] if phases and not METHODS[consistency].told_end else None,
        **(adapters if config.lora_rank else {}),  # type: ignore[arg-type]  # one of them is a whole number
    )  # fmt: skip
    told_end = METHODS[config.method].told_end
    frozen = choose_frozen_dtype(config.frozen_precision, config.precision, model)
    kept: Any = {
        "ema": config.ema_decay > 0, "target_decay": config.second_decay,
        "checkpointing": config.gradient_checkpointing,
    }  # fmt: skip
    kind: Any = importlib.import_module(_KINDS["lora" if config.lora_rank else "whole"])
    trainable: Trainable
    if config.lora_rank:
        start = None if begun is None else begun.lora
        held: Any = {"frozen": frozen, "quantisation": config.quantisation}
        trainable = kind.LoraWeights(model, card, start=start, **held, **kept)
        return compile_if_wanted(config, trainable)
    if begun is not None and begun.network is not None:
        network = begun.network.requires_grad_(True)
        model.network.backbone.to(frozen)
    elif model.is_student:
        network = model.network.requires_grad_(True)
    else:
        network = model.network.to_student(resolution // model.codec.multiple, told_end=told_end)
        model.network.backbone.to(frozen)
    trainable = kind.WholeWeights(network, model, card, distribution=config.distribution, **kept)
    return compile_if_wanted(config, trainable)


def compile_if_wanted(config: TrainingConfig, trainable: Trainable) -> Trainable:
    """Returns it, compiled if the configuration says so."""
    if config.compile != "off":
        compiling: Any = importlib.import_module("fewstep.runs.compiling")
        compiling.compile_trainable(trainable, config.compile, config.precision)
    return trainable


def check_model(config: ConsistencyConfig, model: LatentModel) -> None:
    """Raises UserError for settings that a model, or what can be made of it, has no place for."""
    _check_settings(config, model.source, model.family, model.card, is_student=model.is_student)
    if config.method == "ect" and model.schedule.has_zero_terminal_snr:
        raise UserError(
            f"the last time of {model.source} is noise alone, which ect never reaches; give another --method"
        )


def look_at(config: ConsistencyConfig, source: str) -> Recognised:
    """Reads what the small files say of the model that a training starts from."""
    # done with before a run begins, so no part of what it computes
    seen: Recognised = importlib.import_module("fewstep.models.recognising").recognise(source, config.base_config)
    if config.network:  # which tells whether it is few-step only as it is loaded
        return dataclasses.replace(seen, few_step=False, card=StudentCard())
    return seen


def check_before(config: ConsistencyConfig, source: str, seen: Recognised) -> None:
    """Raises UserError for settings that such a model has no place for, before its weights are read."""
    _check_settings(config, source, seen.family, seen.card, is_student=seen.few_step)


def _check_settings(
    config: ConsistencyConfig, source: str, family: Family, card: StudentCard, *, is_student: bool
) -> None:
    """Raises UserError for settings that a model of that family, a student or not, has no place for."""
    was, (low, high) = card.consistency or "lcm", config.guidance_range
    if is_student and was != config.method:
        raise UserError(f"{source} was made by {was} and cannot go on by {config.method}; give --method {was}")
    if family.guided_inside:
        _check_guided_inside(config, family)
    adapts = isinstance(config, Distill) and config.lora_rank and not (is_student or family.guided_inside)
    if low != high and (adapts or not family.embeds_guidance):
        what = "a LoRA" if adapts else f"a student of {family.title}"
        raise UserError(
            f"{what} has no input for guidance and guidance_range is {low:g} to {high:g}; give one "
            f"value twice: --guidance-range {config.guidance_scale:g} {config.guidance_scale:g}"
        )


def _check_guided_inside(config: ConsistencyConfig, family: Family) -> None:
    """Raises UserError for what has no meaning with a teacher that guides itself."""
    if config.method == "guided-distill" and not getattr(config, "to_steps", 0):
        raise UserError(
            f"{family.title} is told its guidance already, which is all that the first stage of guided-distill "
            "teaches; give another --method"
        )
    if since := getattr(config, "guided_from", 0):
        raise UserError(f"guided_from is {since} and {family.title} guides itself, at every time alike; leave it out")


def choose_phases(config: ConsistencyConfig, model: LatentModel, begun: Begun | None = None) -> tuple[int, ...]:
    """Returns the numbers of phases to train for: those asked for, those of the model that goes on, or the method's."""
    own = model.card.phases if begun is None else begun.phases
    return config.phases or own or METHODS[config.method].phases


def load_base(config: TrainingConfig, source: str) -> LatentModel:
    """Loads the model that a training starts from. Raises UserError where its weights hold NaN.

    The network of one that will be held in fewer bits rests in main memory till then: the card may not hold it whole.
    Of one that is spread each process has its part alone, from the first.
    """
    device = pick_device(config.device)
    if config.compile != "off":
        importlib.import_module("fewstep.runs.compiling").check_training(config.compile, device)
    if spreads_base(config):
        spreading: Any = importlib.import_module("fewstep.models.spreading")
        mesh = make_mesh(getattr(config, "distribution", "ddp"))
        spread: LatentModel = spreading.load_spread(source, device, config.base_config, config, mesh=mesh)
        return spread
    place = device if config.quantisation is None else torch.device("cpu")
    model = load_latent_model(source, place, config.base_config, config, home=None if place == device else device)
    if broken := model.find_broken():
        held = config.network if config.network and broken.startswith(f"{model.family.lora.part}.") else source
        raise UserError(f"{held} is broken: NaN or infinity in {broken}; fetch the model again, or export it anew")
    return model if place == device else model.settle_around(device)


def note_short_warm_up(config: TrainingConfig) -> None:
    """Says where a run ends before its learning rate has risen to what it is given as."""
    if (rise := config.warmup_steps) > config.steps:
        lr = f"{config.lr * config.steps / rise:.2g} of {config.lr:g}"
        print(f"note: the run ends within the {rise:,} updates of its warm-up, lr at {lr}; give fewer --warmup-steps")


def spreads_base(config: TrainingConfig) -> bool:
    """Returns whether the network that a training starts from is spread over the processes as it is loaded."""
    return current_world().size > 1 and getattr(config, "distribution", "ddp") != "ddp"


def choose_frozen_dtype(frozen: FrozenPrecision, computing: Precision, model: LatentModel) -> torch.dtype:
    """Returns what weights that do not learn are stored in, of a base in 8 or 4 bits those that are not; `auto` is what
    networks compute in."""
    match frozen:
        case "auto" | "int8" | "nf4":
            return model.dtype_for(choose_dtype(computing, model.device))
        case _:
            return model.dtype_for(choose_dtype(frozen, model.device))
