"""`fewstep finetune`: a few-step model on pictures of one's own, without a teacher (Latent Consistency Fine-tuning)."""

from __future__ import annotations

import dataclasses

from fewstep.errors import UserError
from fewstep.method.paths import DataPath
from fewstep.models.card import LCF, LCM_LORA
from fewstep.models.family import LatentModel
from fewstep.recipes.finetune import Finetune
from fewstep.runs.consistency import fit_and_save, make_task, open_run
from fewstep.runs.learning import check_before, load_base, look_at, make_trainable
from fewstep.runs.material import check_data
from fewstep.runs.own_pictures import find_taught, warn_of_autoencoder
from fewstep.runs.reporting import Observed, make_observers, settle_reports
from fewstep.runs.trial import try_out
from fewstep.train.config import check_given
from fewstep.train.learner import Trainable


def finetune(config: Finetune) -> None:
    """Trains and exports to `config.out / "model"`."""
    check_given(config, "model", "data")
    check_data(config)
    config = settle_reports(config)
    check_before(config, config.model, look_at(config, config.model))
    model = load_base(config, config.model)
    check_grid(config, model)
    material = open_run(config, model)
    if material is None:
        return None
    warn_of_autoencoder(model, material, None if config.dry_run else config.out)
    student = make_student(config, model)
    student.card = dataclasses.replace(student.card, learnt_words=find_taught(model, material))
    task = make_task(config, student, DataPath(model.schedule), model, material.latents())
    if config.dry_run:
        return try_out(config, student, task, material.count)
    observe = make_observers(Observed(config, student, material))
    return fit_and_save(config, task, student, "fine-tune", observe)


def check_grid(config: Finetune, model: LatentModel) -> None:
    """Raises UserError where a few-step model cannot be trained on, or paints at other times than it would be."""
    if model.is_few_step and not model.is_student:
        raise UserError(
            f"{config.model} has its guidance built in and no input for it, so it cannot be fine-tuned as it is: "
            "fine-tune its base, or train a style on that (train-lora) and paint with both"
        )
    grid_size = model.schedule.grid_size(config.skip)
    if model.is_student and (own := model.read_grid_size(default=grid_size)) != grid_size:
        raise UserError(
            f"{config.model} paints at {own} times and skip {config.skip} would train it at {grid_size}; "
            f"give --skip {model.schedule.num_steps // own}"
        )


def make_student(config: Finetune, model: LatentModel) -> Trainable:
    """Makes what learns: all of the few-step model, adapters on it, or a student made from a teacher."""
    method = LCM_LORA if config.lora_rank and not model.is_student else LCF
    return make_trainable(config, model, method=method, teacher=config.model, solver="none (algorithm 4)")
