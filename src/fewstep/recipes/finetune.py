"""The settings of a latent consistency fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.recipes.consistency import ConsistencyConfig


@dataclass(frozen=True, kw_only=True)
class Finetune(ConsistencyConfig):
    """Fine-tunes a few-step model, or makes a teacher few-step on these pictures (LCM, algorithm 4)."""

    model: str = assets.SCENES_LCM
    """`scenes-lcm` (bundled), a few-step model that `distill` wrote, any LatentConsistencyModelPipeline, or a teacher;
    `scenes` is the bundled teacher."""
    out: Path = Path("runs/finetuned")
    """Run folder. The same command again goes on where it stopped."""


def default_finetune() -> Finetune:
    """A few hundred updates of the bundled model on two CPU cores, at the guidance that it was trained for."""
    return Finetune(
        steps=300, batch_size=32, lr=5e-4, lr_decay="cosine", ema_decay=0.95, shrink=0.5, guidance_range=(1.0, 4.0),
        guidance_scale=2.0,
    )  # fmt: skip
