"""The settings that distillation and fine-tuning share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fewstep import assets
from fewstep.errors import UserError
from fewstep.method.distances import DistanceName
from fewstep.method.named import METHODS, WALKED, MethodName, NamedMethod, StatesName
from fewstep.method.times import Times
from fewstep.method.weights import WeightName
from fewstep.models.card import MAX_STEPS
from fewstep.parallel.world import Distribution
from fewstep.precision import Quantisation
from fewstep.recipes.pictures import TrainingConfig
from fewstep.train.config import check_between, check_not_negative


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig(TrainingConfig):
    """What distillation and fine-tuning share."""

    out: Path = Path("runs/scenes")
    """Run folder. Give the same command again to resume an interrupted run."""
    guidance_range: tuple[float, float] = (3.0, 9.0)
    """Lowest and highest guidance scale to train for, in diffusers' convention: 1 is no guidance, and the papers' ω is
    1 less. A LoRA, but of FLUX.1, takes a single value, given twice."""
    guidance_scale: float = 5.0
    """Guidance scale that the model paints with when none is given; it must lie in --guidance-range."""
    lora_rank: int = 0
    """Rank of the LoRA to train; 0 trains every weight instead."""
    lora_alpha: float = 0.0
    """The LoRA's effect is multiplied by alpha / rank; 0 takes the rank, so that the factor is 1."""
    skip: int = 20
    """Distance t − s, in time steps of the schedule, between the two times that an update compares: k in the papers.
    Walkers stop at the begin of every phase too: with 125 they take one step for each of 8 phases."""
    shrink: float = 0.0
    """Fraction of the run, 0 to 1, over which the distance t − s shrinks from the whole schedule to --skip; 0 keeps it
    at --skip, as in the papers."""
    times: Times = "grid"
    """Times t to train at: those where LCM samplers land (`grid`), or `any` from --skip on, as in the paper's algorithm
    1."""
    method: MethodName = "lcm"
    """The consistency method (docs/methods.md): `lcm` as in the papers; `any-step`, whose pictures get better with more
    steps and not worse; `pcm`, the same for one number of steps, which every tool can paint in."""
    phases: tuple[int, ...] = ()
    """Numbers of phases that `pcm` (one) or `any-step` (several) is trained for; a model is at its best in as many
    steps. Without a value the method takes its own."""
    target: Literal["auto", "average", "itself"] = "auto"
    """Who answers at the earlier time: the moving `average` of the weights, or the student `itself`, without gradient.
    `auto` is what the method names. Walkers and trajectories ask nobody: they know where the teacher's way leads."""
    target_decay: float | None = None
    """Decay of the average that answers at the earlier time, where it is to differ from --ema-decay, which is then that
    of the exported average alone: a second copy of the weights. By default one average does both."""
    states: StatesName = "auto"
    """What an update learns at: `data`, pictures with noise; `walkers`, where the teacher's own steps have led from
    noise, for which captions alone are needed; `trajectories`, such steps that `fewstep prepare --trajectories` took
    beforehand, for which no teacher is asked; or `own`, where the student's own steps have led, as `tdm` does. `auto`
    is what --data holds, else what the method names, and `data` without a teacher."""
    distance: DistanceName = "auto"
    """How the answers of student and target are compared; `auto` is what the method names, or `huber`."""
    huber_c: float = 0.03
    """Width of the quadratic bottom of the pseudo-Huber distance, in units of the latents. The larger it is, the closer
    the distance is to l2."""
    loss_weight: WeightName = "auto"
    """Weight of the loss at each time, λ(t) in the papers; `truncated-snr` favours times of little noise. `auto` is
    what the method names, which is `constant` for lcm."""
    sample_every: int = 200
    """Updates between two grids of sample pictures; 0 paints none."""
    eval_every: int = 0
    """Updates between two small evaluations at --guidance-scale, written to evaluations.jsonl; 0 makes none."""
    eval_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Step counts that these evaluations score."""
    eval_n: int = 128
    """Pictures that each of their scores is computed from; at least twice the number of the extractor's features."""
    eval_data: str = ""
    """Prompts and real pictures for these evaluations: a folder held out from training. It is not needed for scenes,
    which are drawn afresh."""
    eval_extractor: str = ""
    """Model whose features these evaluations compare, as for `fewstep evaluate --extractor`. It is not needed for
    scenes."""
    distribution: Distribution = "ddp"
    """How several processes hold the student: `ddp` keeps it whole in each, `fsdp` splits weights, average, gradients
    and moments among them, and `hybrid` splits them among those of each machine, so that machines exchange gradients
    alone. Take `fsdp` when one GPU cannot hold them all, and `hybrid` on several machines, each of which can hold them.
    Under adapters either splits the frozen base, and leaves the adapters whole in each."""
    dry_run: bool = False
    """Try three updates, one save and one reload in a folder beside --out that goes away, and print the plan of the
    run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.guidance_range
        if not 1 <= low <= self.guidance_scale <= high:
            raise UserError(
                f"guidance_range is {low:g} to {high:g} and guidance_scale {self.guidance_scale:g}; "
                "needed: 1 ≤ low ≤ guidance_scale ≤ high; give both --guidance-range and --guidance-scale"
            )
        check_between(self, 1, 500, "skip")
        if not 0 <= self.shrink <= 1:
            raise UserError(f"shrink is {self.shrink:g}; it is a part of the run, 0 to 1")
        check_not_negative(self, "lora_rank", "lora_alpha", "sample_every", "eval_every")
        if self.lora_alpha and not self.lora_rank:
            raise UserError(f"lora_alpha is {self.lora_alpha:g} without adapters; give --lora-rank too")
        if self.eval_every and not (self.eval_steps and all(1 <= each <= MAX_STEPS for each in self.eval_steps)):
            raise UserError(f"eval_steps are {self.eval_steps}; expected numbers from 1 to {MAX_STEPS}")
        drawn = self.data in (assets.SCENES, assets.SCENES_LEANING)
        if self.eval_every and not drawn and not (self.eval_data and self.eval_extractor):
            raise UserError(
                "evaluations along the way need pictures that training does not see and features to compare them by: "
                "give --eval-data and --eval-extractor, or --eval-every 0"
            )
        if self.frozen_precision in get_args(Quantisation) and not self.lora_rank:
            raise UserError(
                f"frozen_precision is {self.frozen_precision}, for a base under adapters, and every weight learns "
                "here; give --lora-rank, or --frozen-precision bf16"
            )
        if self.distribution != "ddp" and self.lora_rank:
            self.check_spread_base()
        if self.distribution != "ddp" and not self.lora_rank and self.optimizer != "adamw":
            raise UserError(f"optimizer {self.optimizer} needs whole weights; give --distribution ddp or adamw")
        self._check_method()
        if self.huber_c <= 0:
            raise UserError(f"huber_c is {self.huber_c}; it must be above 0")

    @property
    def second_decay(self) -> float | None:
        """Returns the decay of the target's average where that is not the exported one; None where there is one."""
        return None if self.target_decay == self.ema_decay else self.target_decay

    @property
    def learns_at(self) -> str:
        """Returns which of the STATES updates learn at, where --data does not hold trajectories."""
        return METHODS[self.method].choose_states(self.states)

    @property
    def has_walkers(self) -> bool:
        """Returns whether updates learn where the teacher's own steps have led."""
        return self.learns_at == "walkers"

    @property
    def reads_captions_alone(self) -> bool:
        """Returns whether updates learn where somebody's own steps have led, so that no picture is looked at."""
        return self.learns_at in ("walkers", "own")

    def _check_method(self) -> None:
        """Raises UserError for what the method has no use for."""
        named = METHODS[self.method]
        if self.phases and not named.phases:
            raise UserError(f"phases are {self.phases} and {self.method} has none; give --method pcm or any-step")
        if self.phases and not all(1 <= count <= MAX_STEPS for count in self.phases):
            raise UserError(f"phases are {self.phases}; expected numbers from 1 to {MAX_STEPS}")
        if len(self.phases) > 1 and not named.told_end:
            raise UserError(f"phases are {self.phases} and {self.method} takes one number; give --method any-step")
        if self.shrink and named.gap != "fixed":
            raise UserError(f"shrink is {self.shrink:g} and {self.method} has a distance of its own; give --shrink 0")
        if self.target != "auto" and named.target == "none":
            raise UserError(f"target is {self.target} and {self.method} has none; give --target auto")
        self._check_averages(named)
        if (states := named.choose_states(self.states)) != named.states and "own" in (states, named.states):
            raise UserError(f"states are {states} and {self.method} learns at {named.states}; give --states auto")
        if self.learns_at in WALKED:
            self.check_walked(self.learns_at)

    def check_walked(self, states: str) -> None:
        """Raises UserError for what walkers, or trajectories, cannot do: other steps than theirs; asking a target;
        having several shapes."""
        if self.buckets == "on":
            raise UserError(f"{states} have one shape, and buckets have several; give --buckets off, or --states data")
        if self.target != "auto" or self.target_decay is not None:
            option = "--target-decay" if self.target == "auto" else "--target"
            raise UserError(f"where {states} lead is known, and no target is asked; leave {option} out")
        others = "--shrink" if self.shrink else "--times any" if self.times == "any" else ""
        if others or METHODS[self.method].gap != "fixed":
            others = others or f"--method {self.method}"
            raise UserError(f"{states} go on by equal steps, and {others} wants others; give --states data")

    def _check_averages(self, named: NamedMethod) -> None:
        """Raises UserError for an average that nobody keeps, or nobody asks."""
        target, decay = named.choose_target(self.target), self.target_decay
        if self.target == "average" and not (self.ema_decay or decay):
            raise UserError("target is the average and ema_decay 0 keeps none; give --ema-decay, or --target itself")
        if decay is None:
            return
        if target != "average":
            has = "no target" if target == "none" else "the student itself for a target"
            raise UserError(f"target_decay is {decay:g} and {self.method} has {has}; leave --target-decay out")
        if not 0 < decay < 1:
            raise UserError(
                f"target_decay is {decay:g}; it must be above 0 and below 1; without an average give --target itself"
            )
