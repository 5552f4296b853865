"""`fewstep train-lora`: a style as a LoRA, by ordinary diffusion training on pictures of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.latent_model import LatentModel, load_latent_model, pick_device
from fewstep.models.lora_file import STYLE_LORA
from fewstep.models.network import weights_sha256
from fewstep.recipes.pictures import PictureConfig, open_material
from fewstep.recipes.run_folder import claim_data, claim_run_folder, finished
from fewstep.recipes.shortage import told_what_needs_less
from fewstep.recipes.student import LoraStudent, frozen_dtype
from fewstep.train.diffusion_tuning import DiffusionTuningTask
from fewstep.train.loop import fit


@dataclass(frozen=True, kw_only=True)
class TrainLora(PictureConfig):
    """Trains adapters on a teacher."""

    model: str = assets.SCENES
    """`scenes` (bundled), a diffusers folder in Stable Diffusion's layout, a single-file checkpoint, or a Hub id."""
    base_config: str = ""
    """For a single-file checkpoint: a diffusers folder of its family, weights or none, with configurations and
    tokenizers; else they are fetched from the Hub."""
    data: str = assets.SCENES_LEANING
    """As `distill` takes it."""
    out: Path = Path("runs/style")
    """Run folder. The same command again goes on where it stopped."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 0.0
    """The adapters act alpha/rank-fold; 0 takes the rank."""
    frozen_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What weights that do not learn are stored in: `auto` is bf16 where networks compute in it, so that they need
    half the memory and are not cast at every call."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_rank < 1 or self.lora_alpha < 0:
            raise UserError(
                f"lora_rank is {self.lora_rank} and lora_alpha {self.lora_alpha:g}; at least 1 and 0 needed"
            )


def default_train_lora() -> TrainLora:
    """A few hundred updates on two CPU cores."""
    return TrainLora(steps=400, batch_size=16, lr=1e-3, lr_decay="cosine", warmup_steps=20, ema_decay=0.99)


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
    with told_what_needs_less(config):
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
