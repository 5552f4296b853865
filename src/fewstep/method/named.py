"""The methods by name: each is a value for every seam of the one step, and a line in METHODS."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewstep.diffusion.schedule import Schedule
from fewstep.method.landing import BOUNDARY, BY_DDIM, CLEAN, Landing
from fewstep.method.step import TargetName
from fewstep.method.times import (
    ANYWHERE,
    DRAWN_PHASE,
    PHASE,
    ZERO,
    End,
    Gap,
    consistency_times,
    fixed_gap,
    jump_times,
    ratio_gap,
    whole_gap,
)

GapName = Literal["fixed", "whole", "ratio"]
PathName = Literal["teacher", "data"]

STATES = ("data", "walkers", "trajectories", "own")
"""What an update learns at: pictures with noise; where the teacher's own steps have led; where they led once, which was
kept; or where the student's own steps have led."""

WALKED = ("walkers", "trajectories")
"""Names those of them where the teacher's whole way is known, so that an answer is compared with where it leads."""

if TYPE_CHECKING:
    StatesName = str
else:
    StatesName = Literal[("auto", *STATES)]  # what the command line allows


@dataclass(frozen=True, kw_only=True)
class NamedMethod:
    """What a method does at every seam, and how what it makes is sampled."""

    name: str
    source: str
    """Where it is described."""
    path: PathName = "teacher"
    end: End = ZERO
    phases: tuple[int, ...] = ()
    told_end: bool = False
    """Whether the network has an input for the end."""
    gap: GapName = "fixed"
    landing: Landing = BY_DDIM
    target: TargetName = "average"
    states: str = "data"
    """What it learns at where a teacher is followed: one of STATES."""
    weight: str = "constant"
    distance: str = ""
    """The distance that it is tied to, if it is to one."""
    gamma: float = 0.0
    """Share of the way to the next time that its sampler covers by fresh noise; 1 is LCM's sampler."""
    passes: float = 6.0
    """Forward passes a picture that an update costs, a backward pass being two: the guided teacher's two, the target's
    one and the student's three, where there are all of them."""

    def choose_distance(self, asked: str) -> str:
        """Returns the distance that was asked for, or with `auto` its own."""
        return asked if asked != "auto" else self.distance or "huber"

    def choose_states(self, asked: str) -> str:
        """Returns the states that were asked for, or with `auto` its own."""
        return asked if asked != "auto" else self.states

    def choose_target(self, asked: Literal["auto", "average", "itself"], states: str = "data") -> TargetName:
        """Returns the target that was asked for, or with `auto` its own; none where the way to the end is walked."""
        if states in WALKED:
            return "none"
        return asked if asked != "auto" else self.target

    def choose_weight(self, asked: str) -> str:
        """Returns the weight that was asked for, or with `auto` its own."""
        return asked if asked != "auto" else self.weight

    @property
    def scheduler(self) -> str:
        """Names the scheduler of diffusers that asks and lands where its sampler does."""
        return {1.0: "LCMScheduler", 0.0: "DDIMScheduler"}.get(self.gamma, "TCDScheduler")

    @property
    def flow_scheduler(self) -> str:
        """Names it for a flow; where it would share the way with noise there is none, and the one without does."""
        return "FlowMatchLCMScheduler" if self.gamma == 1.0 else "FlowMatchEulerDiscreteScheduler"

    @property
    def label(self) -> str:
        """Names the sampler as other tools do in the settings of a picture."""
        return self.scheduler.removesuffix("Scheduler")

    def with_sampler(self, gamma: float) -> NamedMethod:
        """Returns the same model's method under a sampler of another γ; where answers shall land above 0, by DDIM."""
        landing = self.landing if gamma == 1.0 or self.landing.anywhere else BY_DDIM
        return dataclasses.replace(self, gamma=gamma, landing=landing)

    def make_gap(self, schedule: Schedule, skip: int, pictures: int) -> Gap:
        """Makes the gap of a run of so many pictures in all."""
        match self.gap:
            case "fixed":
                return fixed_gap(skip)
            case "whole":
                return whole_gap
            case "ratio":
                return ratio_gap(schedule, q=2.0, doubling=max(1, pictures // 8))

    def sampling(
        self, schedule: Schedule, grid_size: int, count: int, strength: float = 1.0
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Returns the times that its sampler asks at in `count` steps, and where each answer lands.

        With `strength` below 1, they lie in the earlier part of the schedule alone.
        """
        if self.gamma == 1.0:
            return consistency_times(schedule, grid_size, count, strength), [0] * count
        return jump_times(schedule, count, self.gamma, strength)


_LISTED = (
    NamedMethod(name="lcm", source="arXiv 2310.04378", landing=BOUNDARY, gamma=1.0),
    NamedMethod(name="pcm", source="arXiv 2405.18407", end=PHASE, phases=(4,)),
    NamedMethod(
        name="any-step", source="this project, docs/methods.md", end=DRAWN_PHASE, phases=(1, 2, 4, 8), told_end=True,
        states="walkers", passes=5.0,
    ),
    NamedMethod(name="tcd", source="arXiv 2402.19159", end=ANYWHERE, gamma=0.3),
    NamedMethod(
        name="guided-distill", source="arXiv 2210.03142", end=ANYWHERE, gap="whole", target="none",
        weight="truncated-snr", passes=5.0,
    ),
    NamedMethod(
        name="ect", source="arXiv 2406.14548", path="data", gap="ratio", target="itself", weight="inverse-gap",
        distance="root",
        gamma=1.0, passes=4.0,
    ),
    NamedMethod(
        name="tdm", source="arXiv 2503.06674", end=PHASE, phases=(4,), target="none", states="own", passes=10.5,
    ),
)  # fmt: skip
HALVING = NamedMethod(
    name="guided-distill", source="arXiv 2210.03142, second stage", end=PHASE, gap="whole", landing=CLEAN,
    target="none", weight="truncated-snr", passes=5.0,
)  # fmt: skip
"""What `guided-distill` does once two steps of the student before lead from t to s, and not its teacher."""
FOLLOWING = NamedMethod(
    name="pcm", source="this project, docs/methods.md", end=PHASE, gap="whole", target="none", states="walkers",
    passes=4.0,
)  # fmt: skip
"""What `pcm` does where a step of an any-step student leads from t to s, and not its teacher."""
SAMPLERS = {"deterministic": 0.0, "consistency": 1.0}
"""γ by the names that it has for people."""
METHODS: dict[str, NamedMethod] = {method.name: method for method in _LISTED}

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]  # what the command line allows
