"""A consistency run: its material opened and its folder claimed, its method, and its fit."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

from fewstep.data.latents import LatentSource, StepSource
from fewstep.errors import UserError
from fewstep.method.distances import DISTANCES
from fewstep.method.named import FOLLOWING, HALVING, METHODS
from fewstep.method.paths import Path, StudentPath
from fewstep.method.step import Method
from fewstep.method.times import shrinking_gap
from fewstep.method.weights import WEIGHTS
from fewstep.models.family import LatentModel
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.runs.folder import claim_base, claim_data, claim_run_folder, refuse_others, tell_finished
from fewstep.runs.learning import check_model, note_short_warm_up
from fewstep.runs.material import Material, forget_encoded, open_material
from fewstep.runs.reporting import publish_run
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.learner import Trainable
from fewstep.train.loop import fit
from fewstep.train.task import LatentTask, Task

SAMPLE_PROMPTS = 6
_TASKS = {"walkers": "fewstep.runs.walkers_task", "trajectories": "fewstep.runs.trajectories_task"}
"""Modules of the tasks that learn where a teacher's steps have led; only that of a run's states is imported."""


def open_run(config: ConsistencyConfig, model: LatentModel) -> Material | None:
    """Opens the pictures and claims the run folder, which a dry run does not need; None where the run is finished.

    Raises UserError where the model, the pictures or the folder do not fit the configuration.
    """
    if config.skip > model.schedule.last:
        raise UserError(f"skip is {config.skip} and the schedule has {model.schedule.num_steps} times; give less")
    check_model(config, model)
    few = config.batch_size if config.dry_run else 0
    run = None if config.dry_run else config.out
    if run:
        refuse_others(run)
    material = open_material(config, model, captions=SAMPLE_PROMPTS, most=few, run=run)
    if config.dry_run:
        return material
    claim_run_folder(config.out, config)
    if tell_finished(config.out):
        forget_encoded(config.out)  # where the end of the run was cut short
        publish_run(config, config.out)  # which may be what failed, or is asked for only now
        return None
    keep = claim_data(config, material.account, material.identity)
    note_short_warm_up(config)
    if config.ema_decay**config.steps > 0.1:
        print(f"note: {describe_slow_average(config.ema_decay, config.steps)}", flush=True)
    return dataclasses.replace(material, keep=keep)


def make_task(
    config: ConsistencyConfig, student: Trainable, path: Path, model: LatentModel, latents: LatentSource
) -> LatentTask:
    """Sets the seams of the method as the configuration says."""
    named, skip = METHODS[config.method], config.skip
    if isinstance(path, StudentPath):  # whose sampler stops where phases begin, and nowhere between
        named, skip = HALVING if path.clean else FOLLOWING, model.schedule.num_steps
    if named.states == "own":
        # imported only where a run wants it
        matching = importlib.import_module("fewstep.runs.matching")
        task: LatentTask = matching.make_matching_task(config, student, path, model, latents)
        return task
    method = Method(
        schedule=model.schedule,
        path=path,
        distance=DISTANCES[named.choose_distance(config.distance)](config.huber_c),
        weight=WEIGHTS[named.choose_weight(config.loss_weight)](model.schedule),
        landing=named.landing,
        told_end=named.told_end,
    )
    low, high = map(model.family.omega_of, config.guidance_range)
    gap = named.make_gap(model.schedule, skip, config.steps * config.batch_size)
    if config.shrink:
        pictures = math.ceil(config.shrink * config.steps * config.batch_size)
        gap = shrinking_gap(model.schedule.num_steps, config.skip, pictures)
    drawn = TimeAndGuidance(
        skip=skip, times=config.times, gap=gap, omega_range=(low, high), end=named.end,
        phases=student.card.phases or (),
    )  # fmt: skip
    states = "trajectories" if isinstance(latents, StepSource) else config.learns_at
    if states in _TASKS:
        making: Any = importlib.import_module(_TASKS[states])
        walked: LatentTask = making.make_task(config, student, method, drawn, model, latents)
        return walked
    target = named.choose_target(config.target, config.learns_at)
    return DistillTask(student.learner, method, latents, drawn, config.seed, target)


def fit_and_save(
    config: ConsistencyConfig, task: Task, student: Trainable, title: str, observe: Callable[[int], None]
) -> None:
    """Trains to the end, calling `observe(n)` after update n, and exports to `config.out / "model"`."""
    claim_base(config, student.card)
    fit(task, config, config.out, title, observe)
    student.save(config.out / "model")
    forget_encoded(config.out)
    print(f"model: {config.out / 'model'}", flush=True)
    publish_run(config, config.out)


def describe_slow_average(ema_decay: float, steps: int) -> str:
    """Says why the average of a short run is not worth exporting, and what to do."""
    half_life = math.log(0.5) / math.log(ema_decay)
    less = math.floor(100 * 0.05 ** (1 / steps)) / 100
    return (
        f"ema_decay {ema_decay:g} has a half-life of {half_life:,.0f} updates: after {steps} the "
        f"exported average is still {ema_decay**steps:.0%} what it began as; for a run this short give "
        f"--ema-decay {less:g}"
    )
