"""The settings that distillation and fine-tuning share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep.data.worlds.scene import LOOKS
from fewstep.errors import UserError
from fewstep.method.distances import DistanceName
from fewstep.method.times import Times
from fewstep.method.weights import WeightName
from fewstep.models.pipeline import MAX_STEPS
from fewstep.recipes.pictures import PictureConfig
from fewstep.train.learner import Distribution


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(PictureConfig):
    base_config: str = ""
    """For a single-file checkpoint: a diffusers folder of its family, weights or none, with configurations and
    tokenizers; else they are fetched from the Hub."""
    out: Path = Path("runs/scenes")
    """Run folder. The same command again goes on where it stopped."""
    guidance_range: tuple[float, float] = (3.0, 9.0)
    """Guidance the model is trained for, in diffusers' convention (ω + 1, so 1 is none)."""
    guidance_scale: float = 5.0
    """Guidance the model uses when none is asked for, in diffusers' convention; lies in `guidance_range`."""
    lora_rank: int = 0
    """0 trains every weight; above it LoRA adapters of this rank."""
    lora_alpha: float = 0.0
    """The adapters act alpha/rank-fold; 0 takes the rank, as the paper does."""
    skip: int = 20
    """k = t − s, in the schedule's whole times."""
    shrink: float = 0.0
    """Part of the run, 0 to 1, over which t − s falls from the whole schedule to `skip`; 0 holds it at `skip`, as the
    papers do."""
    times: Times = "grid"
    """`grid`: t where LCM samplers land; `any`: every t ≥ k, as the paper's algorithm 1 is written."""
    distance: DistanceName = "huber"
    """How two answers are compared."""
    huber_c: float = 0.03
    """Width of pseudo-Huber's quadratic bottom, in units of the latent."""
    loss_weight: WeightName = "constant"
    """λ(t) of the loss."""
    sample_every: int = 200
    """Updates between two sample grids; 0 draws none."""
    eval_every: int = 0
    """Updates between two small evaluations at `guidance_scale`; 0 makes none. They are written to
    evaluations.jsonl."""
    eval_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps at which they paint."""
    eval_n: int = 128
    """Pictures that each of their scores is made of; at least twice the extractor's features."""
    eval_data: str = ""
    """Prompts and real pictures for them: a folder held out from training. Scenes draw theirs afresh."""
    eval_extractor: str = ""
    """Whose features they compare, as `fewstep evaluate --extractor`."""
    frozen_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the frozen UNet, a teacher or the base of adapters, is stored in: `auto` is bf16 where networks compute in
    it, so that it needs half the memory and is not cast at every call. A few-step model that learns whole has none."""
    distribution: Distribution = "ddp"
    """Over several processes: `ddp` keeps the student whole in each, `fsdp` a part of it, of its average, gradients and
    moments, once each has built student and average."""
    gradient_checkpointing: bool = False
    """Keep fewer activations and compute them again in the backward pass: less memory, a third more time."""
    dry_run: bool = False
    """Do one batch, one update, one save and one reload in a folder that goes away, and print the plan."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_range
        if not 1 <= low <= self.guidance_scale <= high:
            raise UserError(
                f"guidance_range is {low:g} to {high:g} and guidance_scale {self.guidance_scale:g}; "
                "needed is 1 ≤ low ≤ guidance_scale ≤ high"
            )
        if not 1 <= self.skip <= 100:
            raise UserError(f"skip is {self.skip}; allowed are 1 to 100")
        if not 0 <= self.shrink <= 1:
            raise UserError(f"shrink is {self.shrink:g}; it is a part of the run, 0 to 1")
        if self.lora_rank < 0 or self.lora_alpha < 0:
            raise UserError(
                f"lora_rank is {self.lora_rank} and lora_alpha {self.lora_alpha:g}; neither may be negative"
            )
        if self.lora_alpha and not self.lora_rank:
            raise UserError(f"lora_alpha is {self.lora_alpha:g} without adapters; give --lora-rank too")
        if self.sample_every < 0 or self.eval_every < 0:
            raise UserError(
                f"sample_every is {self.sample_every} and eval_every {self.eval_every}; neither may be negative"
            )
        if self.eval_every and not (self.eval_steps and all(1 <= each <= MAX_STEPS for each in self.eval_steps)):
            raise UserError(f"eval_steps are {self.eval_steps}; wanted are numbers from 1 to {MAX_STEPS}")
        if self.eval_every and self.data not in LOOKS and not (self.eval_data and self.eval_extractor):
            raise UserError(
                "evaluations along the way need pictures that training does not see and features to compare them by: "
                "give --eval-data and --eval-extractor, or --eval-every 0"
            )
        if self.distribution == "fsdp" and self.lora_rank:
            raise UserError("adapters are small and whole in every process; give --distribution ddp")
        if self.distribution == "fsdp" and self.optimizer != "adamw":
            raise UserError(f"optimizer {self.optimizer} needs whole weights; give --distribution ddp or adamw")
        if self.huber_c <= 0:
            raise UserError(f"huber_c is {self.huber_c}; it must be above 0")
