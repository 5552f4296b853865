"""The settings of a distillation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from fewstep import assets
from fewstep.diffusion.solvers import SolverName
from fewstep.errors import UserError
from fewstep.method.named import METHODS
from fewstep.models.card import MAX_STEPS
from fewstep.models.families import FamilyChoice
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.train.config import check_at_least, check_between, check_not_negative

_OF_HEADS = ("adversarial_real", "adversarial_lr")
_OF_STEPS = ("solver", "times", "shrink", "distance", "loss_weight", "adversarial", *_OF_HEADS)
_OF_MATCHING = ("fake_rank", "fake_lr")
"""Settings of heads, of what compares two steps of a teacher's, and of what matches distributions."""
_OF_TEACHERS = ("solver", "skip", "times", "shrink", "target", "target_decay", "adversarial")
"""Settings of what a student has no use for that follows another student."""


@dataclass(frozen=True, kw_only=True)
class Distill(ConsistencyConfig):
    """Turns a teacher into a model that paints in 1 to 8 steps."""

    teacher: str = assets.SCENES
    """The model to distil: `scenes` (bundled), a diffusers folder (docs/families.md), a single-file
    checkpoint or a Hub id."""
    start: str = ""
    """A few-step model of this teacher to go on from, in place of the teacher's own weights: a run folder, or with
    --lora-rank a LoRA's file. `tdm` wants one by any-step or pcm, and `guided-distill` with --to-steps one by
    guided-distill."""
    to_steps: int = 0
    """Number of steps that the second stage of `guided-distill` is for, half of those that --start paints in: the
    student learns to go in one step where that one goes in two. From there half as many are the next stage. 0 is the
    first stage, which follows the teacher."""
    follow: str = ""
    """An any-step model (a run folder, say) whose steps `pcm` learns as a LoRA of --teacher, for tools that cannot
    paint with that model; `fewstep export` sets all that goes with it."""
    out: Path = Path("runs/scenes")
    """Run folder. Give the same command again to resume an interrupted run."""
    family: FamilyChoice = "any"
    """Family that the settings are meant for; a teacher of another family is refused."""
    solver: SolverName = "ddim"
    """Solver by which the teacher steps from t to s."""
    guided_from: int = 0
    """Lowest time step at which the teacher is guided; 0 guides it everywhere, as in the paper. Raise it when pictures
    of many steps look over-guided (docs/results.md)."""

    adversarial: float = 0.0
    """Weight of an adversarial loss beside the consistency loss; 0 adds none. Small heads on the teacher's features
    learn to tell the student's answers from real ones, and the student to be taken for real. PCM's authors take 0.1,
    for fewer than 4 steps."""
    adversarial_real: Literal["target", "pictures"] = "target"
    """What is real to the heads: the target's answers, as in PCM, or the pictures that are learnt from, which was
    better at every number of steps on the bundled world (docs/methods.md)."""
    adversarial_lr: float = 0.0
    """Learning rate of these heads; 0 takes twice --lr. Lower it when the loss of the heads falls to 0."""
    fake_rank: int = 64
    """Rank of the adapters by which the teacher tells the student's pictures too; for `tdm`."""
    fake_lr: float = 0.0
    """Learning rate of these adapters; 0 takes 10 times --lr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "fake_rank")
        check_not_negative(self, "fake_lr", "adversarial", "adversarial_lr")
        if self.guided_from < 0:
            raise UserError(f"guided_from is {self.guided_from}; it is a time of the schedule, 0 or later")
        if METHODS[self.method].path == "data":
            raise UserError(
                f"{self.method} learns from pictures and has no teacher, nor guidance: give it to `fewstep finetune`"
            )
        check_between(self, 0, MAX_STEPS // 2, "to_steps")
        self._check_followed()
        matches, (low, high) = METHODS[self.method].states == "own", self.guidance_range
        if low != high and matches:
            raise UserError(
                f"{self.method} matches pictures of one guidance and guidance_range is {low:g} to {high:g}; give one "
                f"value twice: --guidance-range {self.guidance_scale:g} {self.guidance_scale:g}"
            )
        for field in fields(Distill):
            value = getattr(self, field.name)
            if field.name in (_OF_STEPS if matches else _OF_MATCHING) and value != field.default:
                why = "compares no steps of a teacher" if matches else "learns no fake score"
                option = field.name.replace("_", "-")
                raise UserError(f"{field.name} is {value} and {self.method} {why}; leave --{option} out")
            if field.name in _OF_HEADS and value != field.default and not self.adversarial:
                raise UserError(f"{field.name} is {value} without heads; give --adversarial too")

    def check_walked(self, states: str) -> None:
        super().check_walked(states)
        if self.adversarial_real == "pictures":
            raise UserError(f"adversarial_real is pictures, and {states} show none; give --states data")
        if states == "trajectories" and self.adversarial and not self.lora_rank:
            raise UserError(
                f"adversarial is {self.adversarial:g} and trajectories give up the teacher, whose features are judged; "
                "give other --data and --states walkers, or --lora-rank"
            )

    @property
    def follows_student(self) -> bool:
        """Returns whether the path is that of another student, and not of the teacher."""
        return bool(self.to_steps or self.follow)

    @property
    def learns_at(self) -> str:
        return "walkers" if self.states == "auto" and self.follow and not self.to_steps else super().learns_at

    def _check_followed(self) -> None:
        """Raises UserError for what does not go with a student that is followed."""
        if not self.follows_student:
            return
        if self.to_steps and (self.method != "guided-distill" or not self.start):
            raise UserError(
                f"to_steps is {self.to_steps}, which is of the second stage of guided-distill; give --method "
                "guided-distill and the model of the first with --start"
            )
        if self.follow and (self.method != "pcm" or not self.lora_rank or self.start or self.guided_from):
            raise UserError(
                f"follow is {self.follow}, whose steps a fresh LoRA learns at one number of steps; give --method pcm "
                "and --lora-rank, and neither --start nor --guided-from"
            )
        if self.states == "trajectories":
            raise UserError(
                "trajectories are a teacher's, and a student is followed; give other --data, and --states auto"
            )
        plain = Distill()
        for name in _OF_TEACHERS:
            if (value := getattr(self, name)) != getattr(plain, name):
                option = name.replace("_", "-")
                raise UserError(f"{name} is {value} and no teacher is followed, but a student; leave --{option} out")
