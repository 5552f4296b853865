"""What distillation and fine-tuning share: the consistency loss's settings, the pictures, samples along the way."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch

from fewstep.consistency.distance import DISTANCES, DistanceName
from fewstep.consistency.path import Path as ConsistencyPath
from fewstep.consistency.path import Times
from fewstep.consistency.step import Method
from fewstep.consistency.weight import WEIGHTS, WeightName
from fewstep.data.latents import LatentSource
from fewstep.errors import UserError
from fewstep.models.latent_model import LatentModel
from fewstep.models.pipeline import MAX_STEPS, load_pipeline
from fewstep.recipes.pictures import LOOKS, PictureConfig, open_material
from fewstep.recipes.run_folder import claim_data, claim_run_folder, finished
from fewstep.recipes.shortage import told_what_needs_less
from fewstep.recipes.student import Student
from fewstep.recipes.watching import Watcher
from fewstep.train.config import LoopConfig
from fewstep.train.distill_task import DistillTask, TimeAndGuidance
from fewstep.train.learner import Distribution
from fewstep.train.loop import fit
from fewstep.train.world import current_world

SAMPLE_PROMPTS = 6
PathMaker = Callable[[Student], ConsistencyPath]


@dataclass(frozen=True, kw_only=True)
class ConsistencyRun(PictureConfig):
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


def run(
    config: ConsistencyRun, model: LatentModel, make: Callable[[int], Student], path: PathMaker, title: str
) -> None:
    """Trains what `make(resolution)` gives on the configuration's pictures and exports to `config.out / "model"`."""
    if config.skip >= model.schedule.num_steps:
        raise UserError(f"skip is {config.skip} and the schedule has {model.schedule.num_steps} times; give less")
    resolution = config.side(model)
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
    with told_what_needs_less(config):
        fit(task, config, config.out, title, watcher)
    student.save(config.out / "model")
    print(f"model: {config.out / 'model'}", flush=True)


def make_task(
    config: ConsistencyRun, student: Student, path: ConsistencyPath, model: LatentModel, latents: LatentSource
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


def try_out(config: ConsistencyRun, student: Student, task: DistillTask, pictures: int) -> None:
    """One batch, one update, one save and one reload, in a folder that goes away; then the plan of the whole run."""
    once = LoopConfig(**{field.name: getattr(config, field.name) for field in fields(LoopConfig)} | {"steps": 1})
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        with told_what_needs_less(config):
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
