"""`fewstep train-lora`: a style as a LoRA, by ordinary diffusion training on pictures of it."""

from __future__ import annotations

from typing import Any

from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora.file import STYLE_LORA
from fewstep.models.network import weights_sha256
from fewstep.recipes.train_lora import TrainLora, default_train_lora
from fewstep.runs.folder import claim_data, claim_run_folder, finished
from fewstep.runs.material import open_material
from fewstep.runs.shortage import explain_out_of_memory
from fewstep.runs.student import LoraStudent, frozen_dtype
from fewstep.train.diffusion_tuning import DiffusionTuningTask
from fewstep.train.loop import fit

__all__ = ["TrainLora", "default_train_lora", "train_lora"]


def train_lora(config: TrainLora) -> None:
    """Trains and exports to `config.out / "model"`."""
    model = load_latent_model(config.model, pick_device(config.device), config.base_config)
    found = open_material(config, model)
    claim_run_folder(config.out, config)
    if finished(config.out):
        return
    claim_data(config, found.account, found.identity)
    null_cond = model.null_cond()
    student = LoraStudent(
        model, ema=config.ema_decay > 0, details=model_details(config, model), frozen=frozen_dtype(config, model.device)
    )
    task = DiffusionTuningTask(
        student.learner, model.schedule, model.network.parameterisation, found.latents(), null_cond, config.seed
    )
    with explain_out_of_memory(config):
        fit(task, config, config.out, "style")
    student.save(config.out / "model")
    print(f"model: {config.out / 'model'}", flush=True)


def model_details(config: TrainLora, model: LatentModel) -> dict[str, Any]:
    """What is recorded beside the weights."""
    names = ("data", "steps", "batch_size", "lr", "ema_decay", "seed", "lora_rank")
    return {
        "name": config.out.resolve().name,
        "method": STYLE_LORA,
        "teacher": config.model,
        "teacher_sha256": weights_sha256(model.network.unet),
        **({"base_config": config.base_config} if config.base_config else {}),
        **{name: getattr(config, name) for name in names},
        "lora_alpha": config.lora_alpha or float(config.lora_rank),
    }
