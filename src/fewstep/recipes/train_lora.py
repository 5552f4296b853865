"""The settings of a style's training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fewstep import assets
from fewstep.parallel.world import Distribution
from fewstep.recipes.pictures import TrainingConfig
from fewstep.train.config import check_at_least, check_not_negative


@dataclass(frozen=True, kw_only=True)
class TrainLora(TrainingConfig):
    """Trains a style LoRA on pictures of that style."""

    model: str = assets.SCENES
    """The model to train the LoRA on: `scenes` (bundled), a diffusers folder (docs/families.md), a
    single-file checkpoint or a Hub id."""
    data: str = ""
    """Captioned pictures of the style, in any form that `fewstep distill` takes; try `scenes-leaning` (bundled)."""
    out: Path = Path("runs/style")
    """Run folder. Give the same command again to resume an interrupted run."""
    lora_rank: int = 16
    """Rank of the LoRA to train."""
    lora_alpha: float = 0.0
    """The LoRA's effect is multiplied by alpha / rank; 0 takes the rank, so that the factor is 1."""

    distribution: Distribution = "ddp"
    """How several processes hold the frozen base: `ddp` whole in each, `fsdp` a part in each, and `hybrid` spreads it
    over the processes of each machine. Take `fsdp` when one GPU cannot hold the base; the adapters are whole in
    each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distribution != "ddp":
            self.check_spread_base()
        check_at_least(self, 1, "lora_rank")
        check_not_negative(self, "lora_alpha")


def default_train_lora() -> TrainLora:
    """Trains a style in a few hundred updates on two CPU cores."""
    return TrainLora(steps=400, batch_size=16, lr=1e-3, lr_decay="cosine", warmup_steps=20, ema_decay=0.99)
