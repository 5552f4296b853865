"""A consistency run: material, method, fit, save, or one batch of it to try out."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import torch

from fewstep.data.latents import LatentSource
from fewstep.errors import UserError
from fewstep.method.distances import DISTANCES
from fewstep.method.paths import Path as ConsistencyPath
from fewstep.method.step import Method
from fewstep.method.weights import WEIGHTS
from fewstep.models.latent_model import LatentModel
from fewstep.models.pipeline import load_pipeline
from fewstep.parallel.world import current_world
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.runs.folder import claim_data, claim_run_folder, finished
from fewstep.runs.material import choose_resolution, open_material
from fewstep.runs.shortage import explain_out_of_memory
from fewstep.runs.student import Student
from fewstep.runs.watching import Watcher
from fewstep.train.config import LoopConfig
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.loop import fit

SAMPLE_PROMPTS = 6
PathMaker = Callable[[Student], ConsistencyPath]


def run(
    config: ConsistencyConfig, model: LatentModel, make: Callable[[int], Student], path: PathMaker, title: str
) -> None:
    """Trains what `make(resolution)` gives on the configuration's pictures and exports to `config.out / "model"`."""
    if config.skip >= model.schedule.num_steps:
        raise UserError(f"skip is {config.skip} and the schedule has {model.schedule.num_steps} times; give less")
    resolution = choose_resolution(config, model)
    few = config.batch_size if config.dry_run else 0
    found = open_material(config, model, captions=SAMPLE_PROMPTS, most=few)
    if config.dry_run:
        student = make(resolution)
        try_out(config, student, make_task(config, student, path(student), model, found.latents()), found.count)
        return
    claim_run_folder(config.out, config)
    if finished(config.out):
        return
    claim_data(config, found.account, found.identity)
    if config.ema_decay**config.steps > 0.1:
        print(f"note: {slow_average(config)}", flush=True)
    student = make(resolution)
    task = make_task(config, student, path(student), model, found.latents())
    watcher = Watcher(config, student, found.captions, resolution, model.device)
    with explain_out_of_memory(config):
        fit(task, config, config.out, title, watcher)
    student.save(config.out / "model")
    print(f"model: {config.out / 'model'}", flush=True)


def make_task(
    config: ConsistencyConfig, student: Student, path: ConsistencyPath, model: LatentModel, latents: LatentSource
) -> DistillTask:
    """The seams of the method, set as the configuration says."""
    method = Method(
        schedule=model.schedule,
        path=path,
        distance=DISTANCES[config.distance](config.huber_c),
        weight=WEIGHTS[config.loss_weight](model.schedule),
    )
    low, high = map(model.family.omega_of, config.guidance_range)
    drawn = TimeAndGuidance(
        skip=config.skip, times=config.times, omega_range=(low, high),
        shrinking_samples=math.ceil(config.shrink * config.steps * config.batch_size),
    )  # fmt: skip
    return DistillTask(student.learner, method, latents, drawn, config.seed)


def try_out(config: ConsistencyConfig, student: Student, task: DistillTask, pictures: int) -> None:
    """One batch, one update, one save and one reload, in a folder that goes away; then the plan of the whole run."""
    once = LoopConfig(**{field.name: getattr(config, field.name) for field in fields(LoopConfig)} | {"steps": 1})
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with explain_out_of_memory(config):
            fit(task, once, Path(folder) / "run", "dry run")
        seconds, peak = time.perf_counter() - begun, peak_gib()  # before the reload, which a run does not do
        student.save(Path(folder) / "model")
        if current_world().main:
            load_pipeline(Path(folder) / "model", config.device)
    learning = sum(p.numel() for p in student.learner.weights.parameters() if p.requires_grad)
    print(f"saved and loaded again; {learning:,} parameters learn")
    print(
        f"plan: {config.steps} updates of {config.batch_size}, {config.steps * config.batch_size / pictures:.1f} epochs"
    )
    print(
        f"time: at most {timedelta(seconds=round(seconds * config.steps))}, by the first update, which is the slowest"
    )
    print(f"peak memory: {peak:.2f} GiB")


def peak_gib() -> float:
    """Of the GPU where there is one, else of the process, since it began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def slow_average(config: LoopConfig) -> str:
    """Why the average of a short run is not worth exporting, and what to do."""
    half_life = math.log(0.5) / math.log(config.ema_decay)
    less = math.floor(100 * 0.05 ** (1 / config.steps)) / 100
    return (
        f"ema_decay {config.ema_decay:g} has a half-life of {half_life:,.0f} updates: after {config.steps} the "
        f"exported average is still {config.ema_decay**config.steps:.0%} what it began as; for a run this short give "
        f"--ema-decay {less:g}"
    )
