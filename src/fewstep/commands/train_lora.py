"""`fewstep train-lora`: a style as a LoRA, by ordinary diffusion training on pictures of it."""

from __future__ import annotations

import dataclasses

from fewstep.diffusion.flow import Flow
from fewstep.models.card import STYLE_LORA, StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.model_files import name_place
from fewstep.models.network import hash_weights
from fewstep.recipes.train_lora import TrainLora
from fewstep.runs.folder import claim_base, claim_data, claim_run_folder, refuse_others, tell_finished
from fewstep.runs.learning import choose_frozen_dtype, compile_if_wanted, load_base, note_short_warm_up
from fewstep.runs.material import check_data, forget_encoded, open_material
from fewstep.runs.own_pictures import find_taught, warn_of_autoencoder
from fewstep.runs.reporting import publish_run, settle_reports
from fewstep.train.config import check_given
from fewstep.train.diffusion_tuning import DiffusionTuningTask
from fewstep.train.loop import fit
from fewstep.train.lora_weights import LoraWeights


def train_lora(config: TrainLora) -> None:
    """Trains and exports to `config.out / "model"`."""
    check_given(config, "model", "data")
    check_data(config)
    config = settle_reports(config)
    model = load_base(config, config.model)
    refuse_others(config.out)
    material = open_material(config, model, run=config.out)
    claim_run_folder(config.out, config)
    if tell_finished(config.out):
        forget_encoded(config.out)  # where the end of the run was cut short
        publish_run(config, config.out)  # which may be what failed, or is asked for only now
        return
    keep = claim_data(config, material.account, material.identity)
    note_short_warm_up(config)
    warn_of_autoencoder(model, material, config.out)
    null_cond = model.conditioner.null()
    frozen = choose_frozen_dtype(config.frozen_precision, config.precision, model)
    style = LoraWeights(
        model,
        dataclasses.replace(make_card(config, model), learnt_words=find_taught(model, material)),
        ema=config.ema_decay > 0,
        checkpointing=config.gradient_checkpointing,
        frozen=frozen,
        quantisation=config.quantisation,
    )
    compile_if_wanted(config, style)
    task = DiffusionTuningTask(
        style.learner, model.schedule, model.network.parameterisation, material.latents(), null_cond, config.seed
    )
    claim_base(config, style.card)
    fit(task, config, config.out, "style", keep)
    style.save(config.out / "model")
    forget_encoded(config.out)
    print(f"model: {config.out / 'model'}", flush=True)
    publish_run(config, config.out)


def make_card(config: TrainLora, model: LatentModel) -> StudentCard:
    """Makes what is recorded beside the weights."""
    return StudentCard(
        name=config.out.resolve().name, method=STYLE_LORA, teacher=name_place(config.model),
        shift=model.schedule.shift if isinstance(model.schedule, Flow) else None,
        teacher_sha256=hash_weights(model.network.backbone), base_config=config.base_config or None,
        **config.stated(),
        data=config.data, steps=config.steps, batch_size=config.batch_size, lr=config.lr, ema_decay=config.ema_decay,
        seed=config.seed, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha or float(config.lora_rank),
    )  # fmt: skip
