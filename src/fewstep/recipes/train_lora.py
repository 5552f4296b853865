"""The settings of a style's training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep import assets
from fewstep.errors import UserError
from fewstep.recipes.pictures import PictureConfig


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
