"""The student that another one follows, in place of a teacher."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from fewstep.errors import UserError
from fewstep.files import has_suffix
from fewstep.method.paths import StudentPath
from fewstep.models.card import LCD, LCF, LORA_FILE, StudentCard, read_card, read_method
from fewstep.models.family import LatentModel
from fewstep.models.model_places import find_exported
from fewstep.models.network import BackboneNetwork, hash_weights
from fewstep.recipes.distill import Distill
from fewstep.runs.begun import ROUNDING, load_student_beside
from fewstep.runs.learning import choose_frozen_dtype
from fewstep.train.learner import Trainable


def follow_student(config: Distill, student: Trainable, teacher: LatentModel) -> StudentPath:
    """Makes the path of the student that `config` names, and records on the card of the one that learns which it is.

    With `--to-steps` it is the student that learns, as it is now: two of its steps. With `--follow` it is an any-step
    model: one of its steps. Raises UserError where that does not fit.
    """
    if config.to_steps:
        last = student.freeze_copy()
        weights = last if isinstance(last, nn.Module) else student.learner.weights  # adapters, which are whole
        _record(student, config.start, weights)
        return StudentPath(last, teacher.schedule, 2 * config.to_steps, jumps=2, clean=True)
    network = _load_any_step(config, teacher, student.card)
    _record(student, config.follow, network)
    (phases,) = student.card.phases or ()
    return StudentPath(network, teacher.schedule, phases, jumps=1, told_end=True)


def _record(student: Trainable, followed: str, weights: nn.Module) -> None:
    student.card = dataclasses.replace(student.card, followed=followed, followed_sha256=hash_weights(weights))


def check_followed(follow: str) -> None:
    """Raises UserError for what `--follow` names where its files say already that it is no whole any-step model."""
    folder = Path(find_exported(follow))
    if has_suffix(folder) or (folder / LORA_FILE).is_file():
        raise UserError(f"{follow} is a LoRA; give a whole model by any-step")
    card = read_card(folder) if folder.is_dir() else StudentCard()
    by_us = card.consistency is not None or card.method in (LCD, LCF)
    if by_us and not (method := read_method(card, follow)).told_end:
        raise _refuse_method(follow, method.name)


def _refuse_method(follow: str, made: str) -> UserError:
    return UserError(f"{follow} was made by {made}; give a model by any-step, which is told where to land")


def _load_any_step(config: Distill, teacher: LatentModel, card: StudentCard) -> BackboneNetwork:
    """Loads the network that `--follow` names. Raises UserError for one that is not any-step, of another kind than the
    teacher, or not made for this guidance."""
    folder = Path(find_exported(config.follow))
    model = load_student_beside(folder, teacher)
    if not model.network.takes_end:
        made = read_method(model.card, config.follow).name if model.is_few_step else "nobody as a few-step model"
        raise _refuse_method(config.follow, made)
    if model.family is not teacher.family or model.network.parameterisation != teacher.network.parameterisation:
        raise UserError(
            f"{config.follow} is of another kind than {config.teacher}; give the base that it was made from"
        )
    low, high = model.card.guidance_range or (model.card.guidance_scale or config.guidance_scale,) * 2
    if not low - ROUNDING <= config.guidance_scale <= high + ROUNDING:
        raise UserError(
            f"guidance_scale is {config.guidance_scale:g} and {config.follow} was made for {low:g} to {high:g}; give "
            "one of these"
        )
    if model.card.teacher_sha256 not in (None, card.teacher_sha256):
        print(f"note: {config.follow} was made from other weights than those of {config.teacher}", flush=True)
    model.network.backbone.to(choose_frozen_dtype(config.frozen_precision, config.precision, teacher))
    return model.network.requires_grad_(False)
