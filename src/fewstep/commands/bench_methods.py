"""`fewstep bench methods`: every method on a world whose guided ODE is known, by its own sampler, at several steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.draws import check_seed
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Network
from fewstep.diffusion.schedule import Schedule, Tabulated
from fewstep.errors import UserError
from fewstep.files import write_whole
from fewstep.measure.mixture import (
    CLASSES,
    MEANS,
    NULL_COND,
    OMEGA_RANGE,
    STD,
    ExactMap,
    Mixture,
    Points,
    Student,
    energy_distance,
    follow_finely,
    guide,
)  # fmt: skip
from fewstep.method.distances import DISTANCES
from fewstep.method.landing import BY_DDIM, ConsistencyFunction, Landing
from fewstep.method.named import HALVING, METHODS, MethodName, NamedMethod
from fewstep.method.paths import DataPath, StudentPath, TeacherPath
from fewstep.method.sampling import sample_consistency
from fewstep.method.step import Method
from fewstep.method.times import jump_times
from fewstep.method.walks import make_walk
from fewstep.method.weights import WEIGHTS
from fewstep.parallel.world import current_world
from fewstep.train.config import LoopConfig, check_at_least, check_not_negative
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.learner import Learner, learn_every_weight
from fewstep.train.loop import begin, do_update
from fewstep.train.walk_task import WalkTask

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
HALVED = (4, 2, 1)
"""Numbers of steps that the second stage of `guided-distill` is for, one after the other."""
ORACLES = (0.0, 0.3, 0.5, 1.0)
"""Each γ that the exact map is sampled with."""


@dataclass(frozen=True, kw_only=True)
class BenchMethods:
    """Distils four Gaussians, whose guided ODE is known exactly, by every method, and measures what few steps leave.

    A row `exact` samples the exact map: what is left there is the sampler's own, whatever is learnt.
    """

    methods: tuple[MethodName, ...] = tuple(name for name, method in METHODS.items() if method.states != "own")
    """Methods to train, a row each, and for guided-distill a second one: of students made from it by its second stage
    for 4, 2 and 1 steps, each measured in as many and trained as long again."""
    omega: tuple[float, ...] = (0.0, 2.0, 5.0)
    """Guidance to measure at, in the papers' convention: 0 is none, and diffusers' guidance_scale is 1 more."""
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Steps to sample in, a column each."""
    updates: int = 1500
    """Updates of a training, of --batch-size points each; 1500 take about 15 seconds."""
    batch_size: int = 256
    """Points an update."""
    skip: int = 25
    """Distance t − s between the two times that an update compares, where the method fixes it."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of trainings; the table has the mean over them, --json each one."""
    shift: float = 0.0
    """Shift of a flow on which the Gaussians become noise, such as 3; 0 takes Stable Diffusion's betas."""
    points: int = 4096
    """Points that each figure is measured on; with 4096 an energy distance is off by about 4."""
    json: Path | None = None
    """File to write the figures to."""

    @property
    def schedule(self) -> Schedule:
        """Returns how the Gaussians become noise."""
        return Flow(shift=self.shift) if self.shift else Tabulated.from_config(STABLE_DIFFUSION)

    def __post_init__(self) -> None:
        check_not_negative(self, "shift")
        check_at_least(self, 1, "updates", "batch_size", "skip")
        check_at_least(self, 16, "points")
        for name in self.methods:
            if METHODS[name].states == "own":
                raise UserError(f"{name} goes on from a student, which is not measured here; leave it out")
        for seed in self.seeds:
            check_seed(seed, name="seeds")
        low, high = OMEGA_RANGE
        if not (self.methods and self.steps and self.seeds and self.omega):
            raise UserError("methods, steps, seeds and omega must name at least one each")
        if not all(low < omega <= high for omega in self.omega):
            raise UserError(f"omega is {self.omega}; students are trained for {low:g} to {high:g}")
        if not all(1 <= count <= 1000 // self.skip for count in self.steps):
            raise UserError(f"steps are {self.steps}; with skip {self.skip} they are 1 to {1000 // self.skip}")


class Oracle:
    """The teacher, and at each ω where its ODE leads from the noise that is measured on."""

    def __init__(self, schedule: Schedule, omegas: Sequence[float], points: int) -> None:
        self.schedule, self.teacher = schedule, Mixture(schedule, MEANS, STD)
        self.cond = {"weights": CLASSES[torch.arange(points) % 2]}
        self._points = points
        times = torch.arange(schedule.last, -1, -2)
        times = torch.cat([times, times.new_zeros(1)]) if times[-1] else times
        own, other = self.noise(1).double(), self.noise(2).double()
        self.fine = {omega: self._follow(own, omega, times) for omega in omegas}
        self._law = {omega: self._follow(other, omega, times).float() for omega in omegas}

    def noise(self, seed: int) -> Tensor:
        """Draws `[points, 2]`."""
        return torch.randn(self._points, 2, generator=torch.Generator().manual_seed(seed))

    def _follow(self, z: Tensor, omega: float, times: Tensor) -> Tensor:
        field = guide(self.teacher, self.cond, torch.full((self._points,), omega, dtype=torch.float64))
        return follow_finely(self.schedule, field, z, times)

    @torch.no_grad()
    def measure(
        self, network: Network, landing: Landing, omega: float, times: Sequence[int], ends: Sequence[int], *,
        told_end: bool,
    ) -> dict[str, float]:  # fmt: skip
        """Measures 1000 times the energy distance to the ODE's law, and the RMS distance to the ODE's own points."""
        f = ConsistencyFunction(
            network, self.cond, torch.full((self._points,), omega), self.schedule, landing, told_end
        )  # fmt: skip
        noise = torch.Generator().manual_seed(1)
        z = sample_consistency(f, times, lambda: torch.randn(self._points, 2, generator=noise), ends=ends).float()
        far = (z - self.fine[omega]).square().sum(1).mean().sqrt()
        distance = sum(energy_distance(z[i::2], self._law[omega][i::2]) for i in range(2)) / 2  # class by class
        return {"energy": 1000 * distance, "rms": float(far)}


def bench_methods(config: BenchMethods) -> dict[str, Any]:
    """Prints a table for each ω, writes the figures where `config.json` says, and returns them."""
    torch.manual_seed(0)
    schedule = config.schedule
    world = Oracle(schedule, config.omega, config.points)
    rows: list[dict[str, Any]] = []
    for gamma in ORACLES:
        for omega in config.omega:
            for count in config.steps:
                times, ends = jump_times(schedule, count, gamma)
                found = world.measure(ExactMap(world.teacher), BY_DDIM, omega, times, ends, told_end=True)
                rows.append({"method": f"exact, γ = {gamma:g}", "omega": omega, "steps": count, **found})
    for name in config.methods:
        for seed in config.seeds:
            rows += train_and_measure(METHODS[name], config, world, seed)
    results = {"settings": {**vars(config), "json": None, "methods": list(config.methods)}, "rows": rows}
    for omega in config.omega:
        print(f"\nω = {omega:g}: energy distance to the guided ODE's law, in thousandths / RMS to its points\n")
        print("\n".join(tabulate(rows, omega, config.steps)), flush=True)
    if config.json is not None:
        with write_whole(config.json) as draft:
            draft.write_text(json.dumps(results, indent=1) + "\n")
    return results


def train_and_measure(named: NamedMethod, config: BenchMethods, world: Oracle, seed: int) -> list[dict[str, Any]]:
    """Trains a method's student by the loop's own updates, and measures it at every ω and number of steps.

    A method without a teacher knows nothing of guidance, and is measured at ω = 0 alone.
    """
    torch.manual_seed(seed)
    learner = learn_every_weight(Student(world.schedule, told_end=named.told_end), ema=True)
    network, seconds = _train(make_task(named, config, world, learner, seed), learner, config, seed)
    made = dict.fromkeys(config.steps, network)
    rows = _measure(named.name, named, made, config, world, seed=seed, seconds=seconds)
    return rows + (halve_and_measure(network, config, world, seed) if named.name == HALVING.name else [])


def halve_and_measure(first: Student, config: BenchMethods, world: Oracle, seed: int) -> list[dict[str, Any]]:
    """Halves the steps of what `guided-distill` made, again and again, and measures each student at its own number of
    steps alone."""
    made, seconds = {2 * HALVED[0]: first}, 0.0
    for count in HALVED:
        last = made[2 * count]
        learner = learn_every_weight(copy.deepcopy(last).requires_grad_(True), ema=True)
        path = StudentPath(last, world.schedule, 2 * count, jumps=2, clean=True)
        drawn = dataclasses.replace(draw(HALVING, config), skip=world.schedule.num_steps, phases=(count,))
        method = dataclasses.replace(make_method(HALVING, world), path=path)
        task = DistillTask(learner, method, Points(world.teacher), drawn, seed, HALVING.target)
        made[count], took = _train(task, learner, config, seed)
        seconds += took
    made = {count: network for count, network in made.items() if count in config.steps}
    return _measure(f"{HALVING.name}, halved", METHODS[HALVING.name], made, config, world, seed=seed, seconds=seconds)


def _train(task: DistillTask, learner: Learner, config: BenchMethods, seed: int) -> tuple[Student, float]:
    """Returns the average of what learnt, and the seconds that it took."""
    loop = LoopConfig(
        steps=config.updates, batch_size=config.batch_size, lr=5e-3, lr_decay="cosine", ema_decay=0.95,
        precision="fp32", seed=seed,
    )  # fmt: skip
    state, begun = begin(task.roles, loop), time.perf_counter()
    for _ in range(config.updates):
        do_update(task, state, loop, current_world())
    assert isinstance(learner.averaged, Student)
    return learner.averaged, time.perf_counter() - begun


def _measure(
    name: str, named: NamedMethod, made: Mapping[int, Network], config: BenchMethods, world: Oracle, **told: float
) -> list[dict[str, Any]]:
    """Measures the network of each number of steps by the method's sampler; a row for every ω."""
    rows = []
    for omega in config.omega if named.path == "teacher" else [each for each in config.omega if each == 0]:
        for count, network in made.items():
            times, ends = named.sampling(world.schedule, world.schedule.grid_size(config.skip), count)
            found = world.measure(network, named.landing, omega, times, ends, told_end=named.told_end)
            rows.append({"method": name, "omega": omega, "steps": count, **told, "passes": named.passes, **found})
    return rows


def make_task(named: NamedMethod, config: BenchMethods, world: Oracle, learner: Learner, seed: int) -> DistillTask:
    """Sets the seams, and where an update learns, as the method names them."""
    method, source, drawn = make_method(named, world), Points(world.teacher), draw(named, config)
    if named.states == "walkers":
        walk = make_walk(world.schedule, config.skip, named.phases, config.batch_size)
        return WalkTask(learner, method, source, drawn, seed, walk=walk)
    return DistillTask(learner, method, source, drawn, seed, named.target)


def make_method(named: NamedMethod, world: Oracle) -> Method:
    """Sets the seams as the method names them, with the squared distance where it names none."""
    schedule = world.schedule
    path = TeacherPath(world.teacher, schedule, NULL_COND) if named.path == "teacher" else DataPath(schedule)
    return Method(
        schedule, path, DISTANCES[named.distance or "l2"](0.03), WEIGHTS[named.weight](schedule), named.landing,
        named.told_end,
    )  # fmt: skip


def draw(named: NamedMethod, config: BenchMethods) -> TimeAndGuidance:
    """Says which times, ends and guidance are drawn."""
    schedule, pictures = config.schedule, config.updates * config.batch_size
    return TimeAndGuidance(
        skip=config.skip, times="grid", gap=named.make_gap(schedule, config.skip, pictures), omega_range=OMEGA_RANGE,
        end=named.end, phases=named.phases,
    )  # fmt: skip


def tabulate(rows: Sequence[dict[str, Any]], omega: float, steps: Sequence[int]) -> list[str]:
    """Writes a line of Markdown for each method with a cell for each number of steps, means over the seeds."""
    lines = ["| method | " + " | ".join(map(str, steps)) + " |", "|" + "---|" * (1 + len(steps))]
    for name in dict.fromkeys(row["method"] for row in rows if row["omega"] == omega):
        cells = []
        for count in steps:
            own = [row for row in rows if (row["method"], row["omega"], row["steps"]) == (name, omega, count)]
            energy, rms = (sum(row[column] for row in own) / max(1, len(own)) for column in ("energy", "rms"))
            cells.append(f"{round(energy)} / {rms:.2f}" if own else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines
